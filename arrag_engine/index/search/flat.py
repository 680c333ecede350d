"""Exact search over keys held in memory: of a small index, or of a few pictures of a large one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..keys import Keys
from .searcher import Searcher, in_batches

if TYPE_CHECKING:
    import faiss


def exact_index(dim: int, chunks: Iterable[np.ndarray]) -> faiss.IndexFlatL2:
    """Exact search over keys given in chunks [n, dim]."""
    import faiss  # here, because drawing without an index does not need it

    index = faiss.IndexFlatL2(dim)
    for keys in chunks:
        index.add(np.ascontiguousarray(keys, dtype=np.float32))
    return index


def among(ids: np.ndarray, patches_per_image: int, images: np.ndarray) -> np.ndarray:
    """Mask [n] of the patches [n] that belong to these pictures."""
    pictures = ids // np.array(patches_per_image, ids.dtype)
    wanted = np.zeros(max(pictures.max(initial=0), np.max(images, initial=0)) + 1, bool)
    wanted[images] = True
    return wanted[pictures]


class Flat:
    """Exact search over all keys."""

    kind = "flat"
    recall = 1.0
    choice = ""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys

    @property
    def settings(self) -> dict[str, str]:
        return {"recall": str(self.recall)}

    @property
    def size(self) -> int:
        return self.keys.size

    @cached_property
    def _index(self) -> faiss.IndexFlatL2:
        """Made at the first search: loading an index does not need it."""
        return exact_index(self.keys.dim, (keys for _, keys in self.keys.chunks()))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        k = min(k, self.size)
        return in_batches(lambda xq: self._index.search(xq, k), queries, k)

    def restrict(self, images: np.ndarray) -> Searcher:
        per_image = len(self.keys.active)
        ids = np.unique(images).astype(np.int64)[:, None] * per_image + np.arange(per_image)
        return Subset(ids.ravel(), self.keys.rows(ids.ravel()), per_image)

    def reconstruct(self, ids: np.ndarray) -> np.ndarray:
        return self.keys.rows(ids)

    def arrays(self) -> dict[str, np.ndarray]:
        return {}


class Subset:
    """Exact search among some patches [n] with keys [n, dim], taken from another searcher."""

    def __init__(self, ids: np.ndarray, keys: np.ndarray, patches_per_image: int) -> None:
        order = np.argsort(ids)
        self.ids = ids[order].astype(np.int64)
        self.patches_per_image = patches_per_image
        self._index = exact_index(keys.shape[1], [keys[order]])

    @property
    def size(self) -> int:
        return len(self.ids)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        k = min(k, self.size)
        distances, rows = in_batches(lambda xq: self._index.search(xq, k), queries, k)
        return distances, np.where(rows < 0, -1, self.ids[rows])

    def restrict(self, images: np.ndarray) -> Searcher:
        ids = self.ids[among(self.ids, self.patches_per_image, images)]
        return Subset(ids, self.reconstruct(ids), self.patches_per_image)

    def reconstruct(self, ids: np.ndarray) -> np.ndarray:
        return self._index.reconstruct_batch(np.searchsorted(self.ids, ids))
