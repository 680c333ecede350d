"""The raster of image tokens, and which neighbours of a position a query is made of."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

MAX_SIDE = 256


@dataclass(frozen=True)
class Grid:
    """A raster of height x width tokens; position i stands at row i // width, column i % width."""

    height: int
    width: int

    @property
    def size(self) -> int:
        """Number of positions."""
        return self.height * self.width

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> Grid:
        """The grid that `str` wrote.

        Raises:
            ValueError: Not of the form HxW with sides of 1 to 256.
        """
        match = re.fullmatch(r"(\d{1,3})x(\d{1,3})", text, re.ASCII)
        if match is None or not all(1 <= int(side) <= MAX_SIDE for side in match.groups()):
            raise ValueError(f"grid {text[:20]!r}")
        return cls(*map(int, match.groups()))


Offset = tuple[int, int]
"""(rows down, columns right) from a position to its neighbour."""


def _drawn_before(reach: int) -> tuple[Offset, ...]:
    """All offsets of at most `reach` rows up and columns aside that raster order draws earlier."""
    sides = range(-reach, reach + 1)
    return tuple((r, c) for r in range(-reach, 1) for c in sides if (r, c) < (0, 0))


NEIGHBORHOODS: dict[str, tuple[Offset, ...]] = {
    "causal-4": ((-1, -1), (-1, 0), (-1, 1), (0, -1)),
    "causal-8": ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, -2), (-2, 0), (-1, -2), (-1, 2)),
    "ring-8": ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)),
    "causal-12": _drawn_before(2),
    "causal-24": _drawn_before(3),
}
"""Offsets in key order. `causal-4` is the reference's: north-west, north, north-east, west."""


def is_causal(neighborhood: str) -> bool:
    """Whether all neighbours are drawn before their position, in raster order."""
    return all(offset < (0, 0) for offset in NEIGHBORHOODS[neighborhood])


@dataclass(frozen=True)
class DrawingOrder:
    """In which order a model fills its grid."""

    name: str
    raster: bool
    """Row by row, each from left to right; else in an order that a picture shows while it is
    drawn."""

    def serves(self, neighborhood: str) -> bool:
        """Whether queries of this neighbourhood can be made: in raster order, of tokens that are
        drawn earlier; in any other order, of whatever neighbours are known."""
        return not self.raster or is_causal(neighborhood)


RASTER = DrawingOrder("raster order", raster=True)
ANY_ORDER = DrawingOrder("any order", raster=False)

BORDERS = ("skip", "zero")
"""What happens where a neighbour lies outside the grid: no retrieval there, or a zero vector."""


def neighbor_table(grid: Grid, neighborhood: str) -> np.ndarray:
    """Positions [grid.size, offsets] of each position's neighbours, -1 outside the grid."""
    return offset_table(grid, NEIGHBORHOODS[neighborhood])


def offset_table(grid: Grid, offsets: tuple[Offset, ...]) -> np.ndarray:
    """Positions [grid.size, offsets] at these offsets from each position, -1 outside the grid."""
    rows, columns = np.divmod(np.arange(grid.size), grid.width)
    r = rows[:, None] + np.array(offsets)[:, 0]
    c = columns[:, None] + np.array(offsets)[:, 1]
    inside = (r >= 0) & (r < grid.height) & (c >= 0) & (c < grid.width)
    return np.where(inside, r * grid.width + c, -1)


def beside(table: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Mask [grid.size] of the positions of which a neighbour is known, for a mask [grid.size].

    Args:
        table: Of neighbours, as of `offset_table`.
    """
    return np.asarray((known[table] & (table >= 0)).any(axis=1))


def active_positions(grid: Grid, neighborhood: str, borders: str) -> np.ndarray:
    """Mask [grid.size] of the positions where retrieval runs.

    `skip`: all neighbours lie inside the grid. `zero`: at least one does.
    """
    inside = neighbor_table(grid, neighborhood) >= 0
    return np.all(inside, axis=1) if borders == "skip" else np.any(inside, axis=1)
