"""Codes of the `compact` structure: a key of codebook rows *is* the codes of its neighbours.

Squared L2 of a query to such a key is a sum of table entries, one a neighbour: the arithmetic of
product quantisation with the VQ's own codebook in the place of trained centroids. So 2 bytes a
neighbour give exact distances, and nothing has to be ranked again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..keys import Keys

if TYPE_CHECKING:
    import faiss

ROWS = 2**16
"""Entries of a table: a code is 16 bits."""


def why_not_compact(keys: Keys) -> str | None:
    """What keeps these keys from being held in compact codes, or None."""
    codes, code_dim = keys.codebook.shape
    if keys.spec.space != "codebook":
        return "a compact structure needs keys of the codebook key space"
    if codes + (keys.spec.borders == "zero") > ROWS or keys.places.shape[1] > code_dim:
        return f"a compact structure cannot hold {codes} codes of {code_dim} numbers"
    return None


class CompactCodec:
    """Codes of the neighbours [offsets] uint16, then the place's slot if keys have a position term.

    A neighbour outside the grid has the first number that is no code; its row is zeros.

    Raises:
        ValueError: `why_not_compact`.
    """

    kind = "compact"

    def __init__(self, keys: Keys) -> None:
        if problem := why_not_compact(keys):
            raise ValueError(problem)
        codes, code_dim = keys.codebook.shape
        self.keys = keys
        self.limits = [codes + (keys.spec.borders == "zero")] * keys.spec.offsets
        if keys.places.shape[1]:
            self.limits.append(len(keys.active))
        self.dim = len(self.limits) * code_dim
        """Numbers of a key as the scanner sees it: the place is padded like one more neighbour."""

    def encode(self, ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        keys = self.keys
        image, slot = np.divmod(ids, len(keys.active))
        neighbors = keys.neighbors[slot]  # [n, offsets]
        around = keys.tokens[image[:, None], np.maximum(neighbors, 0)]
        around = np.where(neighbors >= 0, around, len(keys.codebook))
        if keys.places.shape[1]:
            around = np.concatenate((around, slot[:, None]), axis=1)
        return around.astype(np.uint16)

    def decode(self, codes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        tables = self._tables()
        parts = [table[column] for table, column in zip(tables, codes.T, strict=True)]
        return np.ascontiguousarray(np.concatenate(parts, axis=1)[:, : self.keys.dim])

    def check(self, codes: np.ndarray) -> None:
        if codes.dtype != np.uint16 or codes.shape[1] != len(self.limits):
            wanted = len(self.limits)
            raise ValueError(f"codes are {codes.dtype} of {codes.shape[1]}, not uint16 of {wanted}")
        for column, limit in zip(codes.T, self.limits, strict=True):
            if column.max() >= limit:
                raise ValueError(f"codes hold {column.max()} where {limit - 1} is the last")

    def query(self, query: np.ndarray) -> np.ndarray:
        return np.pad(query, (0, self.dim - len(query)))

    def _tables(self) -> list[np.ndarray]:
        """What each number of a code stands for: rows [limit, code_dim] of each column."""
        codes, code_dim = self.keys.codebook.shape
        rows: np.ndarray = np.zeros((self.limits[0], code_dim), np.float32)
        rows[:codes] = self.keys.codebook
        tables = [rows] * self.keys.spec.offsets
        if width := self.keys.places.shape[1]:
            tables.append(np.pad(self.keys.places, ((0, 0), (0, code_dim - width))))
        return tables

    def index(self) -> faiss.IndexIVF:
        import faiss

        coarse = faiss.IndexFlatL2(self.dim)
        index = faiss.IndexIVFPQ(coarse, self.dim, 1, len(self.limits), 16)
        index.by_residual = False
        tables = [np.pad(t, ((0, ROWS - len(t)), (0, 0))) for t in self._tables()]
        faiss.copy_array_to_vector(np.concatenate(tables).ravel(), index.pq.centroids)
        index.is_trained = True
        return index

    def arrays(self) -> dict[str, np.ndarray]:
        return {}
