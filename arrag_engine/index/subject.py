"""Which pictures of an index a prompt is about: those whose captions share its rarest words.

Each word weighs its inverse document frequency in the index's own captions, log(pictures / pictures
with the word). So frequent words ("a", "on", "der") drop out in any language, without a list of
them.
"""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

WORD = re.compile(r"[^\W_]+")
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003134f]+"
)
"""Runs of scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""
GRAM = 2
"""Characters of such a script that count as a word."""
SHARE = 0.5
"""Words that weigh less than this share of the heaviest one drop out."""


@dataclass(frozen=True)
class Subject:
    """The pictures that share words with a prompt."""

    words: tuple[str, ...]
    """The words that decided, the rarest first; as the captions are folded."""
    images: np.ndarray
    """Their numbers; empty if no caption has any of the words."""


@dataclass(frozen=True)
class Holders:
    """Which of some pictures have which of some words in their captions."""

    pictures: int
    """All of them."""
    having: dict[str, np.ndarray]
    """Numbers [n] of the pictures with a word, of every word that any of them has."""

    def counts(self) -> dict[str, int]:
        """Pictures with each word."""
        return {word: len(numbers) for word, numbers in self.having.items()}

    def sums(self, weights: Mapping[str, float]) -> np.ndarray:
        """Summed weight [pictures] of the words of each picture."""
        sums = np.zeros(self.pictures)
        for word, weight in weights.items():
            sums[self.having.get(word, [])] += weight
        return sums

    def best(self, weights: Mapping[str, float], most: float) -> np.ndarray:
        """Numbers of the pictures whose words weigh `most`."""
        sums = self.sums(weights)
        return np.flatnonzero((sums > 0) & np.isclose(sums, most))


def find_holders(captions: Iterable[str], words: Iterable[str]) -> Holders:
    """The pictures whose captions have some words, as written or already folded."""
    wanted = {part for word in words for part in fold(word)}
    having: dict[str, array[int]] = {}
    count = 0
    for count, caption in enumerate(captions, start=1):
        for word in wanted.intersection(fold(caption)):
            having.setdefault(word, array("Q")).append(count - 1)
    return Holders(count, {word: np.array(numbers) for word, numbers in having.items()})


def weigh(counts: Mapping[str, int], pictures: int) -> dict[str, float]:
    """Weights of the words that decide, the rarest first.

    Args:
        counts: Pictures with each word, of `pictures` in all.
    """
    weights = {word: math.log(pictures / count) for word, count in counts.items()}
    heaviest = max(weights.values(), default=0.0)
    kept = [word for word in sorted(weights) if weights[word] >= SHARE * heaviest]
    kept.sort(key=lambda word: -weights[word])
    return {word: weights[word] or 1.0 for word in kept}  # 1: every caption has all of the words


def find_subject(captions: Iterable[str], words: Iterable[str]) -> Subject:
    """The pictures whose captions have the largest summed weight of some words.

    Args:
        words: As written, or already folded.
    """
    holders = find_holders(captions, words)
    weights = weigh(holders.counts(), holders.pictures)
    most = holders.sums(weights).max(initial=0.0)
    return Subject(tuple(weights), holders.best(weights, most))


def fold(text: str) -> list[str]:
    """The words of a text without case, width and English plural, in order; text of a script
    without spaces in overlapping pairs of characters."""
    text = unicodedata.normalize("NFKC", text).casefold()
    words: list[str] = []
    for match in WORD.finditer(text):
        words += _parts(match[0])
    return words


def _parts(word: str) -> list[str]:
    """A word between spaces: its runs of scripts without spaces in pairs, the rest as it is."""
    parts: list[str] = []
    place = 0
    for run in UNSPACED.finditer(word):
        parts += [singular(word[place : run.start()])] if place < run.start() else []
        last = max(1, len(run[0]) - GRAM + 1)
        parts += [run[0][i : i + GRAM] for i in range(last)]
        place = run.end()
    return parts + ([singular(word[place:])] if place < len(word) else [])


def singular(word: str) -> str:
    """An English noun without its regular plural; other words may lose an s on both sides of a
    comparison, which harms nothing."""
    if (
        not (word.isascii() and word.isalpha())
        or len(word) < 4
        or word.endswith(("ss", "us", "is"))
    ):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes", "oes")):
        return word[:-2]
    return word.removesuffix("s")
