"""Search: the nearest patches of queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

Progress = Callable[[int, int], None]
"""Called with (patches done, patches in all) while a structure is built."""

BATCH = 16
"""Queries handed to faiss at once. From 20 on most of its releases compute distances by another
formula, whose rounding would make what is found depend on how many queries are asked together."""


class Searcher(Protocol):
    """Search over the keys of an index, or of some of its pictures."""

    @property
    def size(self) -> int:
        """Number of patches that can be found."""
        ...

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest patches of queries [B, dim] float32, nearest first, ties by lower number.

        Returns:
            Squared L2 distances [B, min(k, size)] float32, inf where nothing was found, and patches
            [B, min(k, size)] int64, -1 there. A query finds the same in whatever batch it is asked.
        """
        ...

    def restrict(self, images: np.ndarray) -> Searcher:
        """A searcher over the patches of these pictures [n] alone; patches keep their numbers."""
        ...

    def reconstruct(self, ids: np.ndarray) -> np.ndarray:
        """Keys [n, dim] float32 of patches [n], rounded as the structure rounds them."""
        ...


class PartialSearcher(Searcher, Protocol):
    """Search with queries of which some numbers do not count (NaN)."""

    def search(
        self, queries: np.ndarray, k: int, complete: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Searcher.search`.

        Args:
            complete: Find only patches that have every neighbour which the query knows.
        """
        ...


def in_batches(
    search: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Search queries [B, dim] a few at a time, put each row in order and mask what is missing."""
    distances = np.empty((len(queries), k), np.float32)
    ids = np.empty((len(queries), k), np.int64)
    for first in range(0, len(queries) if k else 0, BATCH):
        rows = slice(first, first + BATCH)
        d, i = search(np.ascontiguousarray(queries[rows], dtype=np.float32))
        d = np.where(i < 0, np.float32(np.inf), d)
        order = np.lexsort((i, d), axis=-1)
        distances[rows] = np.take_along_axis(d, order, axis=-1)
        ids[rows] = np.take_along_axis(i, order, axis=-1)
    return distances, ids
