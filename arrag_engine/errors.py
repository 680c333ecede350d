"""The one error type for input that is at fault, and how text is made fit to be shown."""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST = 2000
"""Characters of a message."""
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters but for tab and line feed, marks that change the direction of the text around
them, and halves of characters, which stand for bytes of a file name that are no text."""


class InputError(ValueError):
    """A file, name or setting cannot be used. The message is one sentence for the person."""


def printable(text: str, encodings: Iterable[str] = (), longest: int = LONGEST) -> str:
    """A text for people, as it can be written to a stream: beginning and end of a long one, and an
    escape (`\\udce9`) for whatever cannot be printed.

    Args:
        encodings: Of the streams that it goes to, which may lack characters of it.
        longest: Characters to keep, escapes included.
    """
    text = UNPRINTABLE.sub(lambda match: _escaped(match[0]), text)
    for encoding in encodings:
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} ... ({len(text) - 2 * half} characters left out) ... {text[-half:]}"


def _escaped(text: str) -> str:
    return text.encode("unicode_escape").decode()
