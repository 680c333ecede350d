"""From a caption to the text ids that stand before a picture."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Encoding

from ..base import Prompt
from ..tokenizing import TextTokenizer, check_prompt
from .model import MAX_TEXT, Vocabulary

END_OF_TEXT = "<|endoftext|>"
"""Begins and ends a caption."""
SHOWN = 30
"""Characters of a prompt that a note repeats."""


def text_ids(words: Sequence[int], vocabulary: Vocabulary, end: int, max_text: int) -> list[int]:
    """Ids [at most max_text + 1] of a caption of these words, as the official program makes them.

    What does not fit is cut off.
    """
    return [vocabulary.special("t2i"), *begun(words, end)[: max_text - 1], end]


def begun(words: Sequence[int], end: int) -> list[int]:
    """The words, behind the id that begins a caption; one that begins with it gets no second."""
    return list(words) if words and words[0] == end else [end, *words]


class PromptEncoder(TextTokenizer):
    """Encodes captions with a tokenizer given as JSON text.

    The special tokens of Show-o need not be in it: their ids follow from the model's sizes, and no
    caption can spell them.

    Args:
        max_text: Words of a caption, with the id that begins it.

    Raises:
        InputError: The JSON is not a tokenizer, or lacks the token that ends a text.
    """

    def __init__(
        self, tokenizer_json: str, vocabulary: Vocabulary, max_text: int = MAX_TEXT
    ) -> None:
        super().__init__(tokenizer_json, "microsoft/phi-1_5, or of the model itself")
        self.vocabulary, self.max_text = vocabulary, max_text
        self.end_id, self.pad_id = self.special(END_OF_TEXT), vocabulary.special("pad")

    def encode(self, text: str, called: str = "prompt") -> Prompt:
        """Ids of the prompt for a caption; what does not fit the text part is cut off, and noted.

        Args:
            called: What a message calls it.

        Raises:
            InputError: The caption is empty or implausibly long.
        """
        check_prompt(text, called)
        encoding = self.encoded(text)
        self.check_ids([*encoding.ids, self.end_id], self.vocabulary.text)
        ids, blank = self._ids(encoding.ids), self._ids([])
        pads = [self.pad_id] * (len(ids) - len(blank))
        notes = self._cut_note(text, encoding, called)
        return Prompt(text, ids, [*pads, *blank], self.unknown_words(text), notes)

    def blank(self) -> Prompt:
        """The prompt that says nothing."""
        ids = self._ids([])
        return Prompt("", ids, ids, [])

    def _ids(self, words: Sequence[int]) -> list[int]:
        return text_ids(words, self.vocabulary, self.end_id, self.max_text)

    def _cut_note(self, text: str, encoding: Encoding, called: str) -> tuple[str, ...]:
        """Where a caption is cut off, if it is."""
        over = len(begun(encoding.ids, self.end_id)) - (self.max_text - 1)
        if over <= 0:
            return ()
        kept = len(encoding.ids) - over
        last = text[: encoding.offsets[kept - 1][1]][-SHOWN:] if kept else ""
        return (
            f"The {called} has {len(encoding.ids)} tokens, the model reads {kept}: it is cut off "
            f"after {last!r}.",
        )
