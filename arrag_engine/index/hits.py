"""What a look-up returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Hits:
    """The nearest patches of a batch of queries, nearest first.

    Where fewer than K exist, the distance is inf, and code, source and position are -1.
    """

    distances: np.ndarray
    """Squared L2 [B, K] float32."""
    codes: np.ndarray
    """[B, K] int64: the code in the middle of the neighbourhood."""
    sources: np.ndarray
    """[B, K] int64: number of the picture."""
    positions: np.ndarray
    """[B, K] int64: grid position in that picture."""

    @property
    def fields(self) -> tuple[np.ndarray, ...]:
        """Distances, codes, sources, positions."""
        return self.distances, self.codes, self.sources, self.positions

    def found(self) -> np.ndarray:
        """Mask [B, K] of the entries that are patches."""
        return self.sources >= 0

    def queries(self) -> list[Hits]:
        """The hits [1, K] of every query."""
        fields = (field[:, None] for field in self.fields)
        return [Hits(*rows) for rows in zip(*fields, strict=True)]

    def rows(self, rows: slice) -> Hits:
        """The hits of some queries."""
        return self._each(lambda field: field[rows])

    def nearest(self, k: int) -> Hits:
        """The first k hits of every query [B, k]."""
        return self._each(lambda field: field[:, :k])

    def outside(self, sources: Sequence[Sequence[int]], k: int) -> Hits:
        """The k nearest hits [B, <= k] that lie in none of the pictures listed for their query."""
        listed = [np.isin(row, own) for row, own in zip(self.sources, sources, strict=True)]
        dropped = np.stack(listed) | ~self.found()
        order = np.argsort(dropped, axis=1, kind="stable")[:, :k]
        dropped = np.take_along_axis(dropped, order, axis=1)
        distances, *others = (np.take_along_axis(f, order, axis=1) for f in self.fields)
        distances = np.where(dropped, np.float32(np.inf), distances)
        return Hits(distances, *(np.where(dropped, -1, f) for f in others))

    def within(self, distance: float) -> Hits:
        """The hits at most so far away; the others count as not found."""
        far = self.distances > distance
        return Hits(
            np.where(far, np.float32(np.inf), self.distances),
            *(np.where(far, -1, field) for field in self.fields[1:]),
        )

    def divided(self, by: np.ndarray) -> Hits:
        """The same hits, their distances divided by a number [B] for each query."""
        return Hits(self.distances / by[:, None].astype(np.float32), *self.fields[1:])

    @classmethod
    def concat(cls, parts: Sequence[Hits]) -> Hits:
        """The queries of all parts; where a part has fewer hits than another, nothing was found."""
        widths = {part.codes.shape[1] for part in parts}
        fields = zip(*(part.fields for part in parts), strict=True)
        if len(widths) == 1:
            return cls(*map(np.concatenate, fields))
        widest, missing = max(widths), (np.inf, -1, -1, -1)
        return cls(
            *(
                np.concatenate([_widened(one, widest, value) for one in field])
                for field, value in zip(fields, missing, strict=True)
            )
        )

    def _each(self, change: Callable[[np.ndarray], np.ndarray]) -> Hits:
        return Hits(*map(change, self.fields))


def _widened(field: np.ndarray, width: int, value: float) -> np.ndarray:
    """A field [B, k] with as many columns as asked for."""
    more = width - field.shape[1]
    return field if more == 0 else np.pad(field, ((0, 0), (0, more)), constant_values=value)
