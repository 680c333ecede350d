"""What a patch is found by: the vectors of its neighbours, concatenated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..bounds import POSITION_WEIGHT, check_choice
from ..errors import InputError
from ..grid import BORDERS, NEIGHBORHOODS, Grid, active_positions, neighbor_table

KEY_SPACES = ("encoder", "codebook")
"""Vectors of the stored patches: the encoder's continuous ones (reference) or their codes' rows."""
CHUNK = 1 << 17
"""Keys made at once when walking through all of them."""


@dataclass(frozen=True)
class KeySpec:
    """How keys and queries of an index are made."""

    neighborhood: str = "causal-4"
    borders: Literal["skip", "zero"] = "skip"
    space: Literal["encoder", "codebook"] = "encoder"
    position_weight: float = 0.0
    """weight · (row / height, column / width) of the patch is appended; 0 appends nothing."""

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("neighborhood", self.neighborhood, tuple(NEIGHBORHOODS)),
            ("borders", self.borders, BORDERS),
            ("key space", self.space, KEY_SPACES),
        ):
            check_choice(name, value, choices)
        POSITION_WEIGHT.check(self.position_weight)

    def __str__(self) -> str:
        return (
            f"{self.neighborhood}, {self.borders}, {self.space}, position weight "
            f"{self.position_weight:g}"
        )

    @property
    def offsets(self) -> int:
        """Neighbours in a key."""
        return len(NEIGHBORHOODS[self.neighborhood])

    def dim(self, code_dim: int) -> int:
        """Numbers in a key whose vectors have `code_dim`."""
        return self.offsets * code_dim + (2 if self.position_weight else 0)

    def active(self, grid: Grid) -> np.ndarray:
        """Positions [A] of the grid that have a key, in raster order."""
        return np.flatnonzero(active_positions(grid, self.neighborhood, self.borders))

    def check_grid(self, grid: Grid) -> None:
        """Refuse a grid none of whose positions has a key.

        Raises:
            InputError: It is one.
        """
        if not len(self.active(grid)):
            raise InputError(
                f"no position of a {grid} grid has the neighbours of {self.neighborhood} with "
                f"borders {self.borders}; choose borders zero, or a smaller neighborhood"
            )

    def places(self, grid: Grid) -> np.ndarray:
        """What the position term appends [grid.size, 2 or 0] float32."""
        if not self.position_weight:
            return np.empty((grid.size, 0), np.float32)
        row, column = np.divmod(np.arange(grid.size), grid.width)
        place = np.stack((row / grid.height, column / grid.width), axis=1)
        return (self.position_weight * place).astype(np.float32)


def gather_keys(
    vectors: np.ndarray,
    neighbors: np.ndarray,
    places: np.ndarray,
    absent: float = 0.0,
) -> np.ndarray:
    """Keys [..., P, dim] of vectors [..., N, code_dim], positions [P, offsets], places [P, 2 or 0].

    Position -1 (outside the grid) contributes `absent`.
    """
    gathered = vectors[..., np.maximum(neighbors, 0), :]  # [..., P, offsets, code_dim]
    gathered = np.where((neighbors >= 0)[..., None], gathered, np.float32(absent))
    return _append(gathered, places)


def _append(gathered: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Keys [..., P, dim] of vectors [..., P, offsets, code_dim] and places [P, 2 or 0]."""
    *shape, offsets, code_dim = gathered.shape
    keys = gathered.reshape(*shape, offsets * code_dim)
    return np.concatenate(
        (keys, np.broadcast_to(places, (*keys.shape[:-1], places.shape[-1]))), axis=-1
    )


class Keys:
    """All keys of an index, made when asked for.

    Patch `image * A + slot` is the one at the slot-th of the A active positions of a picture.

    Args:
        tokens: [images, N] uint16; may be memory-mapped.
        vectors: The encoder's unit vectors [images, N, code_dim] float32, or None. In the `encoder`
            key space no key can be made without them.
        codebook: Unit rows [codes, code_dim] float32.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        vectors: np.ndarray | None,
        codebook: np.ndarray,
        grid: Grid,
        spec: KeySpec,
    ) -> None:
        self.tokens = tokens
        self.vectors = vectors if spec.space == "encoder" else None
        self.codebook = codebook
        self.grid = grid
        self.spec = spec
        self.active = spec.active(grid)
        self.neighbors = neighbor_table(grid, spec.neighborhood)[self.active]  # [A, offsets]
        self.places = spec.places(grid)[self.active]  # [A, 2 or 0]

    @property
    def size(self) -> int:
        """Number of patches."""
        return len(self.tokens) * len(self.active)

    @property
    def dim(self) -> int:
        """Numbers in a key."""
        vectors = self.codebook if self.vectors is None else self.vectors
        return self.spec.dim(vectors.shape[-1])

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Keys [..., dim] float32 of patches [...].

        Raises:
            ValueError: The key space is `encoder` and the vectors are gone.
        """
        image, slot = np.divmod(ids, len(self.active))
        neighbors = self.neighbors[slot]  # [..., offsets]
        gathered = self._vectors_at(image[..., None], np.maximum(neighbors, 0))
        gathered = np.where((neighbors >= 0)[..., None], gathered, np.float32(0))
        return _append(gathered, self.places[slot])

    def of_images(self, first: int, last: int) -> np.ndarray:
        """Keys [(last - first) * A, dim] float32 of a range of pictures, in order of patches.

        Raises:
            ValueError: The key space is `encoder` and the vectors are gone.
        """
        vectors = self._vectors_at(slice(first, last))
        keys = gather_keys(vectors, self.neighbors, self.places)
        return np.ascontiguousarray(keys.reshape(-1, self.dim), dtype=np.float32)

    def chunks(self, rows: int = CHUNK) -> Iterator[tuple[int, np.ndarray]]:
        """(first patch, keys [about `rows`, dim]) of all patches in order, in whole pictures."""
        step = max(1, rows // max(1, len(self.active)))
        for first in range(0, len(self.tokens), step):
            last = min(first + step, len(self.tokens))
            yield first * len(self.active), self.of_images(first, last)

    def _vectors_at(self, *where: np.ndarray | slice) -> np.ndarray:
        if self.spec.space == "codebook":
            return self.codebook[self.tokens[where]]
        if self.vectors is None:
            raise ValueError("keys of the encoder key space need the encoder's vectors")
        return self.vectors[where]
