"""PatchIndex: token grids of real pictures, searchable by what surrounds a patch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..grid import Grid
from ..vq import codebook_agreement
from .keys import KeySpec, index_keys

if TYPE_CHECKING:
    import faiss


@dataclass(frozen=True)
class Source:
    """One picture that patches were taken from."""

    name: str
    caption: str
    width: int
    height: int
    sha256: str
    licence: str
    thumbnail: bytes
    """A small JPEG."""


@dataclass(frozen=True)
class Neighbors:
    """Nearest patches of a batch of queries, nearest first.

    Where fewer than K exist, distance is inf and code and id are -1.
    """

    distances: np.ndarray
    """Squared L2 [B, K] float32."""
    codes: np.ndarray
    """[B, K] int64: what stood in the middle."""
    ids: np.ndarray
    """[B, K] int64: rows of the index."""

    def found(self) -> np.ndarray:
        """Mask [B, K] of the entries that are neighbours."""
        return self.ids >= 0

    def row(self, i: int) -> Neighbors:
        """The neighbours [1, K] of query i."""
        return Neighbors(*(a[i : i + 1] for a in (self.distances, self.codes, self.ids)))


@dataclass(frozen=True)
class PatchIndex:
    """Token grids of pictures under one VQ, with exact search over the keys made from them."""

    grid: Grid
    tokens: np.ndarray
    """Codes [images, N] uint16."""
    vectors: np.ndarray | None
    """The encoder's unit vectors [images, N, dim] float32; absent in the `codebook` key space."""
    codebook: np.ndarray
    """Unit rows [codes, dim] float32."""
    sources: list[Source]
    spec: KeySpec = field(default_factory=KeySpec)

    @property
    def size(self) -> int:
        """Number of patches that can be found."""
        return len(self.tokens) * len(self.active)

    @cached_property
    def active(self) -> np.ndarray:
        """Grid positions [A] that have a key."""
        return self.spec.active(self.grid)

    @cached_property
    def _search(self) -> faiss.IndexFlatL2:
        import faiss  # here, so that whoever draws without an index needs none

        vectors = self.codebook[self.tokens] if self.vectors is None else self.vectors
        keys = index_keys(vectors, self.grid, self.spec)
        search = faiss.IndexFlatL2(keys.shape[1])
        search.add(keys)
        return search

    def search(self, queries: np.ndarray, k: int) -> Neighbors:
        """The k nearest patches of queries [B, offsets * dim] by squared L2 (all, if k > size)."""
        xq = np.ascontiguousarray(queries, dtype=np.float32)
        distances, ids = self._search.search(xq, min(k, self.size))
        image, slot = np.divmod(ids, len(self.active))
        missing = ids < 0  # faiss's "nothing found"
        codes = np.where(missing, -1, self.tokens[image, self.active[slot]].astype(np.int64))
        return Neighbors(np.where(missing, np.float32(np.inf), distances), codes, ids)

    def locate(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source number, grid position) of index rows."""
        image, slot = np.divmod(ids, len(self.active))
        return image, self.active[slot]

    def check_fits(self, grid: Grid, codebook: np.ndarray) -> None:
        """Refuse a model whose tokens mean something else than the index's.

        Args:
            grid: What the model draws.
            codebook: The model's unit rows [codes, dim].

        Raises:
            InputError: Another grid, another number of codes, or another VQ.
        """
        if grid != self.grid:
            raise InputError(
                f"the index was built for a {self.grid} grid, the model draws {grid}; "
                "build an index with this model"
            )
        agreement = codebook_agreement(codebook, self.codebook)
        if not agreement.same:
            raise InputError(
                f"the index was built with another VQ ({agreement}); build an index with this model"
            )
