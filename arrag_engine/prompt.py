"""From a caption to the text ids that open a picture."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from tokenizers import Tokenizer

from .bounds import shown
from .errors import InputError

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


@dataclass(frozen=True)
class Prompt:
    """An encoded caption."""

    text: str
    ids: list[int]
    pad_id: int
    unknown: list[str]
    """Words that the tokenizer does not know, in order of appearance."""


def check_prompt(text: str) -> str:
    """The caption, unchanged.

    Raises:
        InputError: It is not text, empty or too long.
    """
    if not isinstance(text, str):
        raise InputError(f"the prompt is {shown(text)}; write what to draw")
    if not text.strip():
        raise InputError("the prompt is empty; write what to draw")
    if len(text) > MAX_CHARACTERS:
        raise InputError(
            f"the prompt has {len(text)} characters, at most {MAX_CHARACTERS} are allowed; "
            f"shorten it"
        )
    if re.search("[\ud800-\udfff]", text):
        raise InputError("the prompt contains an incomplete character; type it again")
    return text


class PromptEncoder:
    """Encodes captions with a tokenizer given as JSON text.

    Raises:
        InputError: The JSON is not a tokenizer, or lacks a special token.
    """

    def __init__(self, tokenizer_json: str, max_tokens: int = MAX_TOKENS) -> None:
        try:
            self.tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises bare Exception
            raise InputError(
                f"the tokenizer cannot be read ({str(error)[:120]}); download tokenizer.json again"
            ) from error
        self.max_tokens = max_tokens
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

    def encode(self, text: str) -> Prompt:
        """Ids of the prompt for a caption.

        Raises:
            InputError: The caption is empty or too long.
        """
        check_prompt(text)
        encoding = self.tokenizer.encode(TEMPLATE.format(text=text), add_special_tokens=False)
        ids = [self.bos_id, *encoding.ids, self.begin_of_image_id]
        if len(ids) > self.max_tokens:
            raise InputError(
                f"the prompt has {len(ids)} tokens, at most {self.max_tokens} are allowed; "
                f"shorten it"
            )
        return Prompt(text, ids, self.pad_id, self._unknown_words(text))

    @cached_property
    def has_unknown(self) -> bool:
        """Whether there are words that the tokenizer does not know; byte-level ones know all."""
        return bool(self._unknown_words(NO_WORD))

    def blank(self) -> Prompt:
        """The prompt that says nothing: the unconditional stream of a one-word caption."""
        ids = self.encode("a").ids
        return Prompt("", [ids[0], *[self.pad_id] * (len(ids) - 2), ids[-1]], self.pad_id, [])

    def _unknown_words(self, text: str) -> list[str]:
        unknown_id = self.tokenizer.token_to_id(UNKNOWN)
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        words = (
            text[start:end]
            for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if token_id == unknown_id
        )
        return list(dict.fromkeys(words))
