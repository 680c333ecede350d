"""Columns of byte strings: texts and thumbnails of many pictures."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from .container import CHUNK, FileBytes, Stream

Part = np.ndarray | FileBytes


class Blobs(Sequence[bytes]):
    """Byte strings that stay in the arrays or the file they came in: taking and joining copies no
    bytes."""

    def __init__(self, parts: Sequence[Part], where: np.ndarray) -> None:
        self.parts = tuple(parts)
        """Arrays [bytes] uint8, or bytes in a file."""
        self.where = where
        """[items, 3] int64: number of the part, start, end."""

    @classmethod
    def from_arrays(cls, name: str, data: Part, ends: np.ndarray) -> Blobs:
        """Items that lie one after the other in `data` and end at `ends`.

        Raises:
            ValueError: The ends do not fit the data.
        """
        starts = np.concatenate((np.zeros(min(1, len(ends)), np.int64), ends[:-1]))
        if (ends < starts).any() or (ends[-1] if len(ends) else 0) != len(data):
            raise ValueError(f"the lengths of {name} do not add up")
        return cls((data,), np.stack((np.zeros_like(ends), starts, ends), axis=1))

    @classmethod
    def concat(cls, columns: Sequence[Blobs]) -> Blobs:
        moved, parts = [], []
        for column in columns:
            moved.append(column.where + np.array([len(parts), 0, 0]))
            parts += column.parts
        return cls(parts, np.concatenate(moved))

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, i: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        part, start, end = self.where[i].tolist()
        return self.parts[part][start:end].tobytes()

    def take(self, rows: np.ndarray) -> Blobs:
        return Blobs(self.parts, self.where[rows])

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of each item."""
        return self.where[:, 2] - self.where[:, 1]

    @property
    def ends(self) -> np.ndarray:
        """Where the items end when they are laid one after the other."""
        return np.cumsum(self.lengths)

    def stream(self) -> Stream:
        """The items one after the other."""
        total = int(self.ends[-1]) if len(self) else 0
        return Stream(np.uint8, (total,), self._runs())

    def _runs(self) -> Iterator[np.ndarray]:
        """Stretches of items that already lie together, in pieces of some megabytes."""
        part, start, end = self.where.T
        breaks = np.flatnonzero((part[1:] != part[:-1]) | (start[1:] != end[:-1])) + 1
        firsts = np.concatenate((np.zeros(min(1, len(self)), np.int64), breaks))
        for first, after in zip(firsts, [*breaks, len(self)], strict=False):
            data, stop = self.parts[part[first]], int(end[after - 1])
            for begin in range(int(start[first]), stop, CHUNK):
                yield data[begin : min(begin + CHUNK, stop)]


class BlobWriter:
    """Collects byte strings one by one."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ends = array("q")

    def append(self, item: bytes) -> None:
        self.data += item
        self.ends.append(len(self.data))

    def blobs(self) -> Blobs:
        data = np.frombuffer(self.data, np.uint8)
        return Blobs.from_arrays("items", data, np.array(self.ends, np.int64))
