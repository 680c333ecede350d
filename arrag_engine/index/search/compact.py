"""Codes of the `compact` structure: a key of codebook rows *is* the codes of its neighbours.

Squared L2 of a query to such a key is a sum of table entries, one a neighbour: the arithmetic of
product quantisation with the VQ's own codebook in the place of trained centroids. So 2 bytes a
neighbour give exact distances, and nothing has to be ranked again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from ..keys import Keys
from .lists import Lists

ROWS = 2**16
"""Entries that a table can have: a code is 16 bits."""
SCANNED = 1 << 16
"""Codes scanned at once, at the least."""


def why_not_compact(keys: Keys) -> str | None:
    """What keeps these keys from being held in compact codes, or None."""
    codes = len(keys.codebook)
    if keys.spec.space != "codebook":
        return "a compact structure needs keys of the codebook key space"
    if codes + (keys.spec.borders == "zero") > ROWS:
        return f"a compact structure cannot hold {codes} codes"
    return None


class CompactCodec:
    """Codes of the neighbours [offsets] uint16, then the place's slot if keys have a position term.

    A neighbour outside the grid has the first number that is no code; its row is zeros.

    Raises:
        ValueError: `why_not_compact`.
    """

    kind = "compact"
    name = "codes of the neighbours"
    exact = True

    def __init__(self, keys: Keys) -> None:
        if problem := why_not_compact(keys):
            raise ValueError(problem)
        codes = len(keys.codebook)
        self.keys = keys
        self.limits = [codes + (keys.spec.borders == "zero")] * keys.spec.offsets
        if keys.places.shape[1]:
            self.limits.append(len(keys.active))

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
        parts = [rows[column] for rows, column in zip(self.rows, codes.T, strict=True)]
        return np.ascontiguousarray(np.concatenate(parts, axis=1))

    def check(self, codes: np.ndarray) -> None:
        if codes.dtype != np.uint16 or codes.shape[1] != len(self.limits):
            wanted = len(self.limits)
            raise ValueError(f"codes are {codes.dtype} of {codes.shape[1]}, not uint16 of {wanted}")
        for column, limit in zip(codes.T, self.limits, strict=True):
            if column.max() >= limit:
                raise ValueError(f"codes hold {column.max()} where {limit - 1} is the last")

    @cached_property
    def rows(self) -> list[np.ndarray]:
        """What each number of a code stands for: rows [limit, numbers] of each column."""
        codebook, places = self.keys.codebook, self.keys.places
        rows: np.ndarray = np.zeros((self.limits[0], codebook.shape[1]), np.float32)
        rows[: len(codebook)] = codebook
        position = [places] if places.shape[1] else []
        return [rows] * self.keys.spec.offsets + position

    def scanner(self, lists: Lists, codes: np.ndarray) -> TableScanner:
        return TableScanner(self, lists, codes)

    def arrays(self) -> dict[str, np.ndarray]:
        return {}


class TableScanner:
    """Sums of table entries, a table for each number of a code; see `Scanner`."""

    def __init__(self, codec: CompactCodec, lists: Lists, codes: np.ndarray) -> None:
        self.codec, self.lists, self.codes = codec, lists, codes

    def nearest(self, query: np.ndarray, probes: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
        tables = self._tables(query)
        distances, places = np.empty(0, np.float32), np.empty(0, np.int64)
        for spans in self._runs(probes):
            codes = np.concatenate([self.codes[first:last] for first, last in spans])
            columns = codes.T.astype(np.intp, order="C")  # else each take casts, a little at a time
            sums = tables[0].take(columns[0])
            for table, column in zip(tables[1:], columns[1:], strict=True):
                sums += table.take(column)
            near = nearest_entries(sums, k)
            distances = np.concatenate((distances, sums[near]))
            places = np.concatenate((places, places_in(spans, near)))
        if len(distances) > k:
            near = nearest_entries(distances, k)
            distances, places = distances[near], places[near]
        return distances, places

    def _tables(self, query: np.ndarray) -> list[np.ndarray]:
        """Squared distances [limit] of a query's part to every row, for each number of a code."""
        import faiss

        tables, first = [], 0
        for rows in self.codec.rows:
            part = query[first : first + rows.shape[1]]
            table = np.empty(len(rows), np.float32)
            pointers = map(faiss.swig_ptr, (table, part, rows))
            faiss.fvec_L2sqr_ny(*pointers, rows.shape[1], len(rows))  # type: ignore[attr-defined]
            tables.append(table)
            first += rows.shape[1]
        return tables

    def _runs(self, probes: np.ndarray) -> Iterator[list[tuple[int, int]]]:
        """Spans (first, last) of the lists, as many together as are scanned at once."""
        starts, spans, size = self.lists.starts, [], 0
        for first, last in zip(starts[probes].tolist(), starts[probes + 1].tolist(), strict=True):
            spans.append((first, last))
            size += last - first
            if size >= SCANNED:
                yield spans
                spans, size = [], 0
        if size:
            yield spans


def nearest_entries(distances: np.ndarray, k: int) -> np.ndarray:
    """Entries [m] of the k smallest distances [n] and all that equal the largest of them, without
    those that are not finite."""
    limit = np.partition(distances, k - 1)[k - 1] if len(distances) > k else np.inf
    near = np.flatnonzero(distances <= limit)
    return near[distances[near] < np.inf]


def places_in(spans: list[tuple[int, int]], entries: np.ndarray) -> np.ndarray:
    """Places [m] of entries [m] of what spans (first, last) hold, one after the other."""
    firsts, lasts = np.array(spans).T
    ends = np.cumsum(lasts - firsts)
    span = np.searchsorted(ends, entries, side="right")
    return entries + (lasts - ends)[span]
