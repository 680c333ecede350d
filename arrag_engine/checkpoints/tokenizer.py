"""The tokenizer.json that belongs to a checkpoint."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..files import check_kind, read_text


def read_tokenizer(tokenizer: str | Path, owner: str = "the model") -> str:
    """tokenizer.json as text.

    Args:
        owner: Whose tokenizer.json belongs there, for messages.

    Raises:
        InputError: The file is missing or no text.
    """
    if isinstance(tokenizer, str):
        return tokenizer
    if not tokenizer.is_file():
        raise InputError(
            f"{tokenizer.name} is missing; put the tokenizer.json of {owner} into "
            f"{tokenizer.parent}"
        )
    try:
        with tokenizer.open("rb") as file:
            check_kind(tokenizer, file)
        return read_text(tokenizer)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{tokenizer} is not readable text; download it again") from error
