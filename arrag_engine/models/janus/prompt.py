"""From a caption to the text ids that open a picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ...errors import InputError
from ..base import Prompt
from ..tokenizing import TextTokenizer, check_prompt

BEGIN_OF_SENTENCE = "<｜begin▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
BEGIN_OF_IMAGE = "<begin_of_image>"
TEMPLATE = "<|User|>: {text}\n\n<|Assistant|>:"

MAX_TOKENS = 1024
"""Far beyond the captions such models were trained on; every token costs memory in each layer."""


def unconditional(ids: Sequence[int], pad_id: int) -> list[int]:
    """The second stream of a prompt: pads for all but the first and the last id. There is no
    attention mask: pads are attended."""
    return [*ids[:1], *[pad_id] * (len(ids) - 2), *ids[-1:]] if len(ids) > 1 else list(ids)


class PromptEncoder(TextTokenizer):
    """Encodes captions with a tokenizer given as JSON text.

    Args:
        max_tokens: Ids that a prompt may have.
        vocab_size: Ids that the model embeds.

    Raises:
        InputError: The JSON is not a tokenizer, or lacks a special token.
    """

    def __init__(
        self, tokenizer_json: str, max_tokens: int = MAX_TOKENS, vocab_size: int = sys.maxsize
    ) -> None:
        super().__init__(tokenizer_json, "a Janus-Pro model")
        self.max_tokens = max_tokens
        self.vocab_size = vocab_size
        self.bos_id = self.special(BEGIN_OF_SENTENCE)
        self.pad_id = self.special(PAD)
        self.begin_of_image_id = self.special(BEGIN_OF_IMAGE)

    def encode(self, text: str, called: str = "prompt") -> Prompt:
        """Ids of the prompt for a caption.

        Args:
            called: What a message calls it.

        Raises:
            InputError: The caption is empty or too long.
        """
        check_prompt(text, called)
        encoding = self.encoded(TEMPLATE.format(text=text))
        ids = [self.bos_id, *encoding.ids, self.begin_of_image_id]
        self.check_ids([*ids, self.pad_id], self.vocab_size)
        if len(ids) > self.max_tokens:
            raise InputError(
                f"the {called} has {len(ids)} tokens, at most {self.max_tokens} are allowed; "
                f"shorten it"
            )
        return Prompt(text, ids, unconditional(ids, self.pad_id), self.unknown_words(text))

    def blank(self) -> Prompt:
        """The prompt that says nothing: the unconditional stream of a one-word caption."""
        ids = self.encode("a").unconditional
        return Prompt("", ids, ids, [])
