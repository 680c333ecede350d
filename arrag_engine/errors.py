"""The one error type for input that is at fault."""


class InputError(ValueError):
    """A file, name or setting cannot be used. The message is one sentence for the person."""
