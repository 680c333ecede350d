"""Exact search over keys whose numbers are signs: one bit each, compared by counting bits.

A key is the codes around a patch: 13 bytes for Show-o's eight neighbours of 13 bits. Two signs
that differ are 4 apart, squared; a sign and a zero (no neighbour) 1. Distances are whole numbers,
and equal ones are the rule. What the position adds to a distance is rounded to 1/64.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from ..keys import Keys
from .searcher import Searcher

CHUNK = 1 << 20
"""Patches compared at once."""
WORD = 8
"""Bytes of what is compared at once."""
STEP = 17
"""Of every so many distances one is looked at first; no divisor of what a picture usually has."""
NEVER = 1 << 15
"""A distance above every other: of what may not be found."""
PARTS = 64
"""Of a squared distance, in which what a position adds is counted: whole numbers tie everywhere."""
HALVES = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)
"""Set bits of every number of 16 bits."""


def why_not_bits(keys: Keys) -> str:
    """Why these keys are not signs; empty if they are."""
    if keys.spec.space != "codebook":
        return "search by bits needs keys of the codebook key space"
    if not (np.abs(keys.codebook) == 1).all():
        return "search by bits needs codes that are signs, such as Show-o's"
    return ""


def popcount(words: np.ndarray) -> np.ndarray:
    """Set bits of words [...] uint64."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(words)
    return HALVES[words.view(np.uint16)].reshape(*words.shape, WORD // 2).sum(-1, dtype=np.uint8)


def pack(bits: np.ndarray) -> np.ndarray:
    """Words [W, ...] uint64 of bits [..., n]."""
    packed = np.packbits(bits, axis=-1)
    missing = -packed.shape[-1] % WORD
    widths = [(0, 0)] * (packed.ndim - 1) + [(0, missing)]
    words = np.ascontiguousarray(np.pad(packed, widths)).view(np.uint64)
    return np.ascontiguousarray(np.moveaxis(words, -1, 0))


def place_terms(keys: Keys, places: np.ndarray) -> np.ndarray:
    """What the positions of queries, their places [Q, 2 or 0], add to the squared distances of the
    patches of every picture [Q, A] int32, in parts of `PARTS`."""
    apart = (places[:, None].astype(np.float64) - keys.places) ** 2
    return np.rint(PARTS * apart.sum(axis=-1)).astype(np.int32)


def nearest_places(distances: np.ndarray, k: int) -> np.ndarray:
    """Places [at most k] of the k smallest distances [n], smallest first, ties by the lower
    place.

    The k-th smallest of some of them bounds what has to be sorted.
    """
    step = min(STEP, len(distances) // k)
    if step < 1:
        return np.argsort(distances, kind="stable")
    bound = np.partition(distances[::step], k - 1)[k - 1]
    near = np.flatnonzero(distances <= bound)
    return near[np.argsort(distances[near], kind="stable")[:k]]


class BitSearch:
    """Exact search over the patches of some pictures.

    Queries consist of 1, -1, 0 and NaN, and of a place where keys have one. A number that is NaN
    does not count. With `complete`, a
    patch is found only where it has a number wherever the query has a sign.

    Args:
        images: Numbers of the pictures [n], ascending; None = all.
    """

    def __init__(self, keys: Keys, images: np.ndarray | None = None) -> None:
        self.keys = keys
        self.images = np.arange(len(keys.tokens)) if images is None else images
        self.signs = keys.spec.offsets * keys.codebook.shape[1]
        """Numbers of a key that are signs."""
        self.placed = bool(keys.spec.position_weight)
        self.parts = PARTS if self.placed else 1
        """Of a squared distance, counted in whole numbers."""
        self.never = NEVER * self.parts

    @property
    def size(self) -> int:
        return len(self.images) * len(self.keys.active)

    @cached_property
    def _present(self) -> np.ndarray:
        """Words [W, A] with a bit for each number of a key that is no zero."""
        inside = self.keys.neighbors >= 0  # [A, offsets]
        return pack(np.repeat(inside, self.keys.codebook.shape[1], axis=1))

    @cached_property
    def _words(self) -> list[np.ndarray]:
        """Keys [W, n, A] of each chunk of pictures as bits, zero where there is no number."""
        return [self._packed(images) for images in self._in_chunks()]

    def _in_chunks(self) -> Iterator[np.ndarray]:
        """The pictures, a chunk at a time."""
        step = max(1, CHUNK // max(1, len(self.keys.active)))
        for first in range(0, len(self.images), step):
            yield self.images[first : first + step]

    def _packed(self, images: np.ndarray) -> np.ndarray:
        """Keys [W, n, A] of pictures."""
        signs = self.keys.codebook > 0
        codes = self.keys.tokens[images][:, np.maximum(self.keys.neighbors, 0)]
        bits = signs[codes].reshape(*codes.shape[:2], -1)  # [n, A, offsets * bits]
        return pack(bits) & self._present[:, None]

    def search(
        self, queries: np.ndarray, k: int, complete: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        k = min(k, self.size)
        distances = np.full((len(queries), k), np.inf, np.float32)
        ids = np.full((len(queries), k), -1, np.int64)
        if not k or not len(queries):
            return distances, ids
        queries, places = np.split(queries, [self.signs], axis=1)
        wanted = self._present[:, None]  # [W, 1, A]
        signed = pack(np.abs(queries) > 0)[:, :, None]  # [W, Q, 1]
        both, lacking = wanted & signed, signed & ~wanted
        zero = pack(queries == 0)[:, :, None] & wanted
        one_sided = popcount(lacking | zero).sum(0, dtype=np.uint16)  # [Q, A]
        if self.placed:
            one_sided = one_sided * np.int32(PARTS) + place_terms(self.keys, places)
        if complete:
            one_sided[lacking.any(axis=0)] = self.never
        asked = pack(queries > 0)  # [W, Q]
        for row in range(len(queries)):
            best = self._nearest(asked[:, row], both[:, row], one_sided[row], k)
            for whole, found in zip((distances, ids), best, strict=True):
                whole[row, : len(found)] = found
        return distances, ids

    def _nearest(
        self, asked: np.ndarray, both: np.ndarray, one_sided: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(squared distances, patches) [at most k] of a query, nearest first, ties by lower number.

        Args:
            asked: Words [W] of its positive signs.
            both: Words [W, A] of the signs that are compared with each patch of a picture.
            one_sided: What signs without a counterpart and the place add [A], in parts; `never` =
                not to be found.
        """
        best = np.empty(0, np.int64)
        per_image = len(self.keys.active)
        span = len(self.keys.tokens) * per_image  # above every number
        for images, words in zip(self._in_chunks(), self._words, strict=True):
            distances = self._distances(words, asked, both, one_sided).ravel()
            near = nearest_places(distances, k)
            near = near[distances[near] < self.never]
            picture, place = np.divmod(near, per_image)
            numbers = images[picture] * per_image + place
            ranks = distances[near].astype(np.int64) * span + numbers
            best = np.sort(np.concatenate((best, ranks)))[:k]
        return (best // span / self.parts).astype(np.float32), best % span

    def _distances(
        self, words: np.ndarray, asked: np.ndarray, both: np.ndarray, one_sided: np.ndarray
    ) -> np.ndarray:
        """Squared distances [n, A], in parts, of a query to a chunk of keys [W, n, A]."""
        differing = np.zeros(words.shape[1:], one_sided.dtype)
        for stored, word, counted in zip(words, asked, both, strict=True):
            differing += popcount((stored ^ word) & counted)
        differing *= 4 * self.parts
        differing += one_sided
        return differing

    def restrict(self, images: np.ndarray) -> Searcher:
        return BitSearch(self.keys, np.intersect1d(self.images, images))

    def reconstruct(self, ids: np.ndarray) -> np.ndarray:
        return self.keys.rows(ids)


class Bits(BitSearch):
    """Search by bits over a whole index; a file stores nothing of it."""

    kind = "bits"
    recall = 1.0
    choice = ""

    @property
    def settings(self) -> dict[str, str]:
        return {"recall": str(self.recall)}

    def arrays(self) -> dict[str, np.ndarray]:
        return {}
