"""What a patch is found by: the vectors of its neighbours, concatenated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import InputError
from ..grid import BORDERS, NEIGHBORHOODS, Grid, active_positions, neighbor_table

KEY_SPACES = ("encoder", "codebook")
"""Vectors of the stored patches: the encoder's continuous ones (reference) or their codes' rows."""


@dataclass(frozen=True)
class KeySpec:
    """How keys and queries of an index are made."""

    neighborhood: str = "causal-4"
    borders: Literal["skip", "zero"] = "skip"
    space: Literal["encoder", "codebook"] = "encoder"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("neighborhood", self.neighborhood, tuple(NEIGHBORHOODS)),
            ("borders", self.borders, BORDERS),
            ("key space", self.space, KEY_SPACES),
        ):
            if value not in choices:
                raise InputError(f"{name} is {value!r}; choose one of {', '.join(choices)}")

    def active(self, grid: Grid) -> np.ndarray:
        """Positions [A] of the grid that have a key, in raster order."""
        return np.flatnonzero(active_positions(grid, self.neighborhood, self.borders))


def gather_keys(vectors: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """Keys [..., P, offsets * dim] from vectors [..., N, dim] and positions [P, offsets].

    Position -1 (outside the grid) contributes zeros.
    """
    gathered = vectors[..., np.maximum(neighbors, 0), :]  # [..., P, offsets, dim]
    gathered = np.where((neighbors >= 0)[..., None], gathered, np.float32(0))
    return gathered.reshape(*gathered.shape[:-2], -1)


def index_keys(vectors: np.ndarray, grid: Grid, spec: KeySpec) -> np.ndarray:
    """Keys [images * A, offsets * dim], image by image in raster order, of [images, N, dim]."""
    table = neighbor_table(grid, spec.neighborhood)[spec.active(grid)]
    keys = gather_keys(vectors, table)
    return np.ascontiguousarray(keys.reshape(-1, keys.shape[-1]), dtype=np.float32)
