"""Copied regions: connected positions whose tokens equal one source's tokens at one displacement,
whoever drew them.

Positions are connected through their sides. A displacement is (rows, columns) from a position to
the place in the source.
"""

from __future__ import annotations

import numpy as np

from ..grid import Grid, offset_table
from ..index import Hits

SIDES = ((-1, 0), (0, -1), (0, 1), (1, 0))


class CopyRule:
    """Leaves out the sources of which the next token would make a copied region larger than a
    limit.

    Args:
        library: Tokens [images, N] of all sources.
        limit: Most tokens of a region.
    """

    def __init__(self, grid: Grid, library: np.ndarray, limit: int) -> None:
        self.library, self.limit = library, limit
        self.sides = offset_table(grid, SIDES)  # [N, 4], -1 = outside

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
        over: list[int] = []
        for source, place in zip(
            *self._continued(sources, places, tokens, known, position), strict=True
        ):
            if (
                source not in over
                and self.size(source, place, tokens, known, position) > self.limit
            ):
                over.append(source)
        return over

    def _continued(
        self,
        sources: np.ndarray,
        places: np.ndarray,
        tokens: np.ndarray,
        known: np.ndarray,
        position: int,
    ) -> tuple[list[int], list[int]]:
        """The hits [P] that continue a region: beside them stand tokens of the same source."""
        there, here = self.sides[places], self.sides[position]  # [P, 4], [4]
        stands = (there >= 0) & (here >= 0) & known[here]
        equal = self.library[sources[:, None], there] == tokens[here]
        continued = (stands & equal).any(axis=1)
        return sources[continued].tolist(), places[continued].tolist()

    def size(
        self, source: int, place: int, tokens: np.ndarray, known: np.ndarray, position: int
    ) -> int:
        """Size of the copied region of a position, if it gets the token of a place of a source;
        counting ends above the limit."""
        copied = self.library[source]
        seen, edge = {position}, [(position, place)]
        while edge and len(seen) <= self.limit:
            here, there = edge.pop()
            beside = zip(self.sides[here].tolist(), self.sides[there].tolist(), strict=True)
            for p, q in beside:
                inside = p >= 0 and q >= 0 and p not in seen
                if inside and known[p] and tokens[p] == copied[q]:
                    seen.add(p)
                    edge.append((p, q))
        return len(seen)
