"""Inverted lists: every patch is in the list of the centroid nearest to its key."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..keys import CHUNK, Keys
from .searcher import Progress

MAX_LISTS = 2**16
"""A list's number is kept in 16 bits."""
TRAINING_KEYS = 32
"""Keys that each centroid is trained on."""
TRAINING_ROUNDS = 8


@dataclass(frozen=True)
class Lists:
    """Patches in the order of their lists, ascending within each."""

    ids: np.ndarray
    """[n] uint32."""
    starts: np.ndarray
    """[lists + 1] int64: list l holds ids[starts[l] : starts[l + 1]]."""

    @cached_property
    def sizes(self) -> np.ndarray:
        """[lists] int64."""
        return np.diff(self.starts)

    def numbers(self) -> np.ndarray:
        """The list that each of `ids` stands in [n] uint16."""
        return np.repeat(np.arange(len(self.sizes), dtype=np.uint16), self.sizes)

    @classmethod
    def sorted(cls, numbers: np.ndarray, lists: int) -> Lists:
        """From the list number of every patch [n] uint16.

        A counting sort in pieces: besides the result it needs memory for one piece only.
        """
        sizes = np.zeros(lists, np.int64)
        for first in range(0, len(numbers), CHUNK):
            sizes += np.bincount(numbers[first : first + CHUNK], minlength=lists)
        starts = np.concatenate(([0], np.cumsum(sizes)))
        ids = np.empty(len(numbers), np.uint32)
        ends = starts[:-1].copy()  # where each list has been filled up to
        for first in range(0, len(numbers), CHUNK):
            piece = numbers[first : first + CHUNK]
            order = np.argsort(piece, kind="stable")
            counts = np.bincount(piece, minlength=lists)
            rank = np.arange(len(piece)) - np.repeat(np.cumsum(counts) - counts, counts)
            ids[np.repeat(ends, counts) + rank] = first + order
            ends += counts
        return cls(ids, starts)

    def take(self, places: np.ndarray) -> Lists:
        """The lists with only those entries, given by ascending places [m] in `ids`."""
        return Lists(self.ids[places], np.searchsorted(places, self.starts))


def list_count(size: int) -> int:
    """How many lists an index of this size gets."""
    return max(1, min(size, MAX_LISTS, round(3 * size**0.5)))


def train_centroids(keys: Keys, count: int, seed: int = 0) -> np.ndarray:
    """Centroids [count, dim] float32: k-means over a sample of the keys."""
    import faiss

    wanted = min(keys.size, count * TRAINING_KEYS)
    rows = np.sort(np.random.default_rng(seed).choice(keys.size, wanted, replace=False))
    clustering = faiss.Clustering(keys.dim, count)
    clustering.niter = TRAINING_ROUNDS
    clustering.seed = seed + 1
    clustering.min_points_per_centroid = 1  # else it prints warnings
    clustering.max_points_per_centroid = TRAINING_KEYS
    clustering.train(np.ascontiguousarray(keys.rows(rows)), faiss.IndexFlatL2(keys.dim))
    return faiss.vector_to_array(clustering.centroids).reshape(count, keys.dim)


class Assigned(NamedTuple):
    """The list that each patch is in."""

    numbers: np.ndarray
    """[size] uint16."""
    spreads: np.ndarray
    """Mean squared distance [lists] of a list's keys from its centroid; 0 for an empty one."""


def assign(keys: Keys, centroids: np.ndarray, progress: Progress | None = None) -> Assigned:
    """Every patch in the list of the nearest centroid."""
    import faiss

    coarse = faiss.IndexFlatL2(keys.dim)
    coarse.add(centroids)
    numbers = np.empty(keys.size, np.uint16)
    sizes, sums = np.zeros(len(centroids), np.int64), np.zeros(len(centroids))
    for first, chunk in keys.chunks():
        distances, nearest = coarse.search(chunk, 1)
        numbers[first : first + len(chunk)] = nearest[:, 0]
        sizes += np.bincount(nearest[:, 0], minlength=len(centroids))
        sums += np.bincount(nearest[:, 0], distances[:, 0], minlength=len(centroids))
        if progress is not None:
            progress(first + len(chunk), keys.size)
    return Assigned(numbers, sums / np.maximum(sizes, 1))
