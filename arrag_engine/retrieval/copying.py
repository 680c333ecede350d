"""Copied regions: connected positions whose tokens equal one source's tokens at one displacement,
whoever drew them.

Positions are connected through their sides. A displacement is (rows, columns) from a position to
the place in the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..grid import Grid, offset_table
from ..index import Hits, TokenRows

SIDES = ((-1, 0), (0, -1), (0, 1), (1, 0))


class CopyRule:
    """Leaves out the sources of which the next token would make a copied region larger than a
    limit.

    Args:
        library: Tokens [images, N] of all sources.
        limit: Most tokens of a region.
    """

    def __init__(self, grid: Grid, library: TokenRows, limit: int) -> None:
        self.grid, self.library, self.limit = grid, library, limit
        self.sides = offset_table(grid, SIDES)  # [N, 4], -1 = outside
        self.beside = [[p for p in row if p >= 0] for row in self.sides.tolist()]
        self.rows, self.columns = np.divmod(np.arange(grid.size), grid.width)

    def left_out(
        self, hits: Hits, tokens: np.ndarray, known: np.ndarray, position: int
    ) -> list[int]:
        """Numbers of these sources among hits [1, K] of a position.

        Args:
            tokens: [N] of the picture.
            known: Mask [N] of the tokens that stand.
        """
        found = hits.found()[0]
        sources, places = hits.sources[0, found], hits.positions[0, found]
        continued = self._continued(sources, places, tokens, known, position)
        sources, places = sources[continued], places[continued]
        equal = known & self._equal(sources, places, tokens, position)
        large = equal.sum(axis=1) >= self.limit  # the others cannot exceed it
        over: list[int] = []
        for source, copied in zip(sources[large].tolist(), equal[large].tolist(), strict=True):
            if source not in over and self._size(copied, position) > self.limit:
                over.append(source)
        return over

    def _continued(
        self,
        sources: np.ndarray,
        places: np.ndarray,
        tokens: np.ndarray,
        known: np.ndarray,
        position: int,
    ) -> np.ndarray:
        """Mask [P] of the hits that continue a region: beside them stand tokens of their source."""
        there, here = self.sides[places], self.sides[position]  # [P, 4], [4]
        stands = (there >= 0) & (here >= 0) & known[here]
        equal = self.library[sources[:, None], there] == tokens[here]
        return (stands & equal).any(axis=1)

    def _equal(
        self, sources: np.ndarray, places: np.ndarray, tokens: np.ndarray, position: int
    ) -> np.ndarray:
        """Mask [P, N] of the tokens that equal those of the sources [P] at the displacements that
        lead from the position to the places [P]."""
        height, width = self.grid.height, self.grid.width
        rows = self.rows + (places // width - position // width)[:, None]
        columns = self.columns + (places % width - position % width)[:, None]
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        there = np.where(inside, rows * width + columns, 0)
        return inside & (self.library[sources[:, None], there] == tokens)

    def _size(self, copied: list[bool], position: int) -> int:
        """Size of the region that a position joins, for a mask [N] of copied tokens; counting ends
        above the limit."""
        seen, edge = {position}, [position]
        while edge and len(seen) <= self.limit:
            for p in self.beside[edge.pop()]:
                if copied[p] and p not in seen:
                    seen.add(p)
                    edge.append(p)
        return len(seen)


@dataclass(frozen=True, eq=False)
class CopiedRegion:
    """A copied region of a finished picture."""

    source: int
    down: int
    right: int
    """Displacement from the picture to the source, in tokens."""
    positions: np.ndarray
    """[P] of the picture."""


def copied_regions(
    grid: Grid, library: TokenRows, tokens: np.ndarray, sources: Sequence[int], larger_than: int
) -> list[CopiedRegion]:
    """All copied regions of more than some tokens, of some sources, at every displacement.

    Args:
        library: Tokens [images, N] of all sources.
        tokens: [N] of the picture.
    """
    regions: list[CopiedRegion] = []
    numbers = np.unique(np.asarray(sources, dtype=np.int64))
    there = library[numbers].reshape(-1, grid.height, grid.width)
    here = tokens.reshape(grid.height, grid.width)
    for down in range(1 - grid.height, grid.height):
        for right in range(1 - grid.width, grid.width):
            if (grid.height - abs(down)) * (grid.width - abs(right)) <= larger_than:
                continue  # the overlap is too small
            equal = _equal_at(here, there, down, right)
            likely = np.flatnonzero(equal.sum(axis=(1, 2)) > larger_than)
            for i, positions in _components(equal[likely], larger_than):
                source = int(numbers[likely[i]])
                regions.append(CopiedRegion(source, down, right, positions))
    return regions


def _equal_at(here: np.ndarray, there: np.ndarray, down: int, right: int) -> np.ndarray:
    """Mask [S, H, W] of the positions whose tokens equal those of the sources [S, H, W] at a
    displacement."""
    height, width = here.shape
    rows = slice(max(0, -down), min(height, height - down))
    columns = slice(max(0, -right), min(width, width - right))
    moved = there[:, rows.start + down : rows.stop + down, columns.start + right :]
    equal = np.zeros(there.shape, bool)
    equal[:, rows, columns] = moved[:, :, : columns.stop - columns.start] == here[rows, columns]
    return equal


def _components(masks: np.ndarray, larger_than: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the mask, positions) of each connected component of masks [S, H, W] that is larger
    than a size."""
    count, height, width = masks.shape
    if count == 0:
        return
    # Every cell takes the largest number beside it, until each component has one number.
    labels = np.where(masks, np.arange(1, height * width + 1).reshape(height, width), 0)
    while True:
        wide = np.pad(labels, ((0, 0), (1, 1), (1, 1)))
        beside = (wide[:, :-2, 1:-1], wide[:, 2:, 1:-1], wide[:, 1:-1, :-2], wide[:, 1:-1, 2:])
        spread = np.where(masks, np.maximum.reduce([labels, *beside]), 0)
        if np.array_equal(spread, labels):
            break
        labels = spread
    for i, flat in enumerate(labels.reshape(count, -1)):
        sizes = np.bincount(flat)
        for label in np.flatnonzero(sizes[1:] > larger_than) + 1:
            yield i, np.flatnonzero(flat == label)


def over_copying_score(grid: Grid, regions: Sequence[CopiedRegion]) -> float:
    """The over-copying score: the share of a picture that lies in these regions."""
    positions = [region.positions for region in regions]
    return len(np.unique(np.concatenate(positions))) / grid.size if positions else 0.0
