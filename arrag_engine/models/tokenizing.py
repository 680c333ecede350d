"""Text to ids with a tokenizer.json, whoever made it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

from tokenizers import Encoding, Tokenizer

from ..bounds import shown
from ..errors import InputError

UNKNOWN = "<unk>"
NO_WORD = "\ue000"
"""A character for private use, which no caption of a training set has."""

MAX_CHARACTERS = 20_000
"""Of a caption."""
MAX_GROWTH = 1000
"""How many times as long as a caption what a tokenizer makes of it before the lookup may be; a few
replacements after each other could fill any memory, which ends the process."""


def check_prompt(text: str, called: str = "prompt") -> str:
    """The caption, unchanged.

    Args:
        called: What a message calls it.

    Raises:
        InputError: It is not text, empty or too long.
    """
    if not isinstance(text, str):
        raise InputError(f"the {called} is {shown(text)}; write what to draw")
    if not text.strip():
        raise InputError(f"the {called} is empty; write what to draw")
    if len(text) > MAX_CHARACTERS:
        raise InputError(
            f"the {called} has {len(text)} characters, at most {MAX_CHARACTERS} are allowed; "
            f"shorten it"
        )
    if re.search("[\ud800-\udfff]", text):
        raise InputError(f"the {called} contains an incomplete character; type it again")
    return text


class TextTokenizer:
    """A tokenizer given as JSON text.

    Padding and truncation that the JSON asks for are left out: a caption is neither filled up nor
    cut off, and a length to fill up to could need any amount of memory.

    Args:
        owner: Whose tokenizer.json belongs here, for messages.

    Raises:
        InputError: The JSON is not a tokenizer.
    """

    def __init__(self, tokenizer_json: str, owner: str) -> None:
        self.owner = owner
        with _library("cannot be read"):
            self.tokenizer = Tokenizer.from_str(tokenizer_json)
            self.tokenizer.no_padding()
            self.tokenizer.no_truncation()
            normalizer = self.tokenizer.normalizer
            growth = _growth(json.loads(normalizer.__getstate__())) if normalizer else 1
        if growth > MAX_GROWTH:
            raise InputError(
                f"the tokenizer can replace a letter by more than {MAX_GROWTH} letters; use the "
                f"tokenizer.json of {owner}"
            )

    def special(self, token: str) -> int:
        """The id of a special token.

        Raises:
            InputError: The tokenizer has none.
        """
        token_id = self.tokenizer.token_to_id(token)
        if token_id is None:
            raise InputError(
                f"the tokenizer has no token {token}; use the tokenizer.json of {self.owner}"
            )
        return token_id

    def encoded(self, text: str) -> Encoding:
        """What the tokenizer makes of a text, without special tokens around it."""
        with _library("does not work"):
            return self.tokenizer.encode(text, add_special_tokens=False)

    def check_ids(self, ids: list[int], vocab_size: int) -> None:
        """Refuse what the model has no embedding of: looking it up ends a CUDA device for all."""
        if max(ids) >= vocab_size:
            raise InputError(
                f"the tokenizer makes the id {max(ids)}, the model has {vocab_size} ids; use "
                "the tokenizer.json that belongs to the model"
            )

    @property
    def has_unknown(self) -> bool:
        """Whether there are words that the tokenizer does not know; byte-level ones know all."""
        return bool(self.unknown_words(NO_WORD))

    def unknown_words(self, text: str) -> list[str]:
        """Words of a text that the tokenizer does not know, in order of appearance."""
        unknown_id = self.tokenizer.token_to_id(UNKNOWN)
        encoding = self.encoded(text)
        words = (
            text[start:end]
            for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if token_id == unknown_id
        )
        return list(dict.fromkeys(words))


def _growth(part: object) -> int:
    """How many times as long as a text what the replacements of a normalizer make of it can be."""
    if isinstance(part, list):
        return math.prod(map(_growth, part))
    if not isinstance(part, dict):
        return 1
    content = part.get("content")
    own = max(1, len(content)) if isinstance(content, str) else 1
    return own * math.prod(map(_growth, part.values()))


@contextmanager
def _library(what: str) -> Iterator[None]:
    """Turn whatever the library ends with into a sentence. It raises bare exceptions, and a panic
    of its Rust code is none of Python's exceptions at all: it would end the thread that works
    through ComfyUI's queue.

    Raises:
        InputError: It ended with something.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise InputError(
            f"the tokenizer {what} ({str(error)[:120]}); download tokenizer.json again"
        ) from error
