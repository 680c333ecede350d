"""Queries: what stands around a position, written as the keys of an index are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..grid import Grid, beside, neighbor_table
from ..index import KeySpec
from ..index.keys import gather_keys
from ..settings import Unknown


class Asked(NamedTuple):
    """Positions of one picture to make queries for."""

    tokens: np.ndarray
    """[N]."""
    positions: np.ndarray
    """[P], active ones."""
    known: np.ndarray | None = None
    """Mask [N] of the tokens that stand; those before each position when absent."""

    def at(self, mask: np.ndarray) -> Asked:
        """Some of the positions, for a mask [P]."""
        return self._replace(positions=self.positions[mask])

    def standing(self, position: int) -> np.ndarray:
        """Mask [N] of the tokens that stand when a position is asked for."""
        return np.arange(len(self.tokens)) < position if self.known is None else self.known


class QueryMaker:
    """Makes queries from the tokens of pictures.

    A neighbour that is not known yet counts as one outside the picture does: as zeros, or not at
    all. A model that draws in raster order knows all neighbours of a causal neighbourhood. The rows
    of keys have one length, so what is not known adds the same to the distance of every patch that
    has a neighbour there: nearest patches and shares stay.

    Args:
        spec: How the keys of the index are made.
        codebook: The model's rows [codes, dim].
        unknown: How absent neighbours count: "zero", or "ignore" (NaN in the query).
    """

    def __init__(
        self, spec: KeySpec, grid: Grid, codebook: np.ndarray, unknown: Unknown = "zero"
    ) -> None:
        self.codebook, self.unknown = codebook, unknown
        self.neighbors = neighbor_table(grid, spec.neighborhood)  # [N, offsets], -1 = outside
        self._inside = np.maximum(self.neighbors, 0)  # outside: the first token, always known
        self.places = spec.places(grid)
        self.active = np.zeros(grid.size, dtype=bool)
        self.active[spec.active(grid)] = True

    def queries(
        self, tokens: np.ndarray, positions: np.ndarray, known: np.ndarray | None = None
    ) -> np.ndarray:
        """Queries [P, key dim] float32 at positions [P] of a picture; see `Asked`."""
        neighbors = self._known(self.neighbors[positions], known)
        absent = np.nan if self.unknown == "ignore" else 0.0
        return gather_keys(self.codebook[tokens], neighbors, self.places[positions], absent)

    def counts(self, queries: np.ndarray) -> np.ndarray:
        """How many neighbours [P] queries [P, key dim] know; 0 without any."""
        offsets, dim = self.neighbors.shape[1], self.codebook.shape[1]
        numbers = np.nan_to_num(queries[:, : offsets * dim]).reshape(len(queries), offsets, dim)
        return (numbers != 0).any(axis=2).sum(axis=1)

    def informed(self, known: np.ndarray) -> np.ndarray:
        """Mask [N] of the active positions of which a neighbour stands, for a mask [N] of the
        tokens that stand."""
        return self.active & beside(self.neighbors, known)

    def knows(self, asked: Asked) -> np.ndarray:
        """Mask [P] of the positions asked for of which a neighbour stands; active ones without
        `known` have one."""
        if asked.known is None:
            return np.ones(len(asked.positions), bool)
        known = self._known(self.neighbors[asked.positions], asked.known)
        return np.asarray((known >= 0).any(axis=1))

    def around(self, asked: Asked) -> np.ndarray:
        """What the query at each position is made of [P, offsets]: equal rows mean equal
        queries."""
        around = asked.tokens[self._inside[asked.positions]]
        if asked.known is not None:
            known = self._known(self.neighbors[asked.positions], asked.known)
            around = np.where(known >= 0, around, -1)
        return around

    def surroundings(self, asked: Asked) -> list[bytes]:
        """`around` of each position, as bytes."""
        return [own.tobytes() for own in self.around(asked)]

    @staticmethod
    def _known(neighbors: np.ndarray, known: np.ndarray | None) -> np.ndarray:
        return neighbors if known is None else np.where(known[neighbors], neighbors, -1)
