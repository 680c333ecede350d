"""From a caption to the text ids that open a picture."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tokenizers import Encoding, Tokenizer

from ...bounds import shown
from ...errors import InputError
from ..base import Prompt

BEGIN_OF_SENTENCE = "<｜begin▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
BEGIN_OF_IMAGE = "<begin_of_image>"
UNKNOWN = "<unk>"
TEMPLATE = "<|User|>: {text}\n\n<|Assistant|>:"

NO_WORD = "\ue000"
"""A character for private use, which no caption of a training set has."""

MAX_CHARACTERS = 20_000
MAX_TOKENS = 1024
"""Far beyond the captions such models were trained on; every token costs memory in each layer."""
MAX_GROWTH = 1000
"""How many times as long as a caption what a tokenizer makes of it before the lookup may be; a few
replacements after each other could fill any memory, which ends the process."""


def unconditional(ids: Sequence[int], pad_id: int) -> list[int]:
    """The second stream of a prompt: pads for all but the first and the last id. There is no
    attention mask: pads are attended."""
    return [*ids[:1], *[pad_id] * (len(ids) - 2), *ids[-1:]] if len(ids) > 1 else list(ids)


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


class PromptEncoder:
    """Encodes captions with a tokenizer given as JSON text.

    Padding and truncation that the JSON asks for are left out: a caption is neither filled up nor
    cut off, and a length to fill up to could need any amount of memory.

    Args:
        max_tokens: Ids that a prompt may have.
        vocab_size: Ids that the model embeds.

    Raises:
        InputError: The JSON is not a tokenizer, or lacks a special token.
    """

    def __init__(
        self, tokenizer_json: str, max_tokens: int = MAX_TOKENS, vocab_size: int = sys.maxsize
    ) -> None:
        with _library("cannot be read"):
            self.tokenizer = Tokenizer.from_str(tokenizer_json)
            self.tokenizer.no_padding()
            self.tokenizer.no_truncation()
            normalizer = self.tokenizer.normalizer
            growth = _growth(json.loads(normalizer.__getstate__())) if normalizer else 1
        if growth > MAX_GROWTH:
            raise InputError(
                f"the tokenizer can replace a letter by more than {MAX_GROWTH} letters; use the "
                "tokenizer.json of a Janus-Pro model"
            )
        self.max_tokens = max_tokens
        self.vocab_size = vocab_size
        self.bos_id = self._special(BEGIN_OF_SENTENCE)
        self.pad_id = self._special(PAD)
        self.begin_of_image_id = self._special(BEGIN_OF_IMAGE)

    def _special(self, token: str) -> int:
        token_id = self.tokenizer.token_to_id(token)
        if token_id is None:
            raise InputError(
                f"the tokenizer has no token {token}; use the tokenizer.json of a Janus-Pro model"
            )
        return token_id

    def encode(self, text: str, called: str = "prompt") -> Prompt:
        """Ids of the prompt for a caption.

        Args:
            called: What a message calls it.

        Raises:
            InputError: The caption is empty or too long.
        """
        check_prompt(text, called)
        encoding = self._encoded(TEMPLATE.format(text=text))
        ids = [self.bos_id, *encoding.ids, self.begin_of_image_id]
        self._check_ids([*ids, self.pad_id])
        if len(ids) > self.max_tokens:
            raise InputError(
                f"the {called} has {len(ids)} tokens, at most {self.max_tokens} are allowed; "
                f"shorten it"
            )
        return Prompt(text, ids, unconditional(ids, self.pad_id), self._unknown_words(text))

    def _encoded(self, text: str) -> Encoding:
        with _library("does not work"):
            return self.tokenizer.encode(text, add_special_tokens=False)

    def _check_ids(self, ids: list[int]) -> None:
        """Refuse what the model has no embedding of: looking it up ends a CUDA device for all."""
        if max(ids) >= self.vocab_size:
            raise InputError(
                f"the tokenizer makes the id {max(ids)}, the model has {self.vocab_size} ids; use "
                "the tokenizer.json that belongs to the model"
            )

    @property
    def has_unknown(self) -> bool:
        """Whether there are words that the tokenizer does not know; byte-level ones know all."""
        return bool(self._unknown_words(NO_WORD))

    def blank(self) -> Prompt:
        """The prompt that says nothing: the unconditional stream of a one-word caption."""
        ids = self.encode("a").unconditional
        return Prompt("", ids, ids, [])

    def _unknown_words(self, text: str) -> list[str]:
        unknown_id = self.tokenizer.token_to_id(UNKNOWN)
        encoding = self._encoded(text)
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
