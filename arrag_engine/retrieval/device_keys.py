"""The keys of an index on a device: token codes or vectors in raster order, not key after key.

A key is made of what stands at fixed offsets around a patch. Pictures lie one after the other, each
with a margin of "outside" to its right and below where borders count as zeros, so that the
neighbours of all patches are the same flat array, shifted. Every position is held once, whatever
the neighbourhood: 2 bytes a position as codes, 36 as vectors of 8 numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..grid import NEIGHBORHOODS, Grid
from ..index import KeySpec
from ..index.keys import CHUNK, Keys

FLOAT32 = 2.0**-24
"""Relative rounding error of one float32 operation."""
PRODUCT = {"cuda": 2.0**-10}
"""Relative error of a factor of a product on a device: PyTorch may have been told to round factors
to TF32 on CUDA, to bfloat16 elsewhere. Both are assumed, so that no setting changes a hit."""
COARSEST = 2.0**-8


class Raster(NamedTuple):
    """Where the positions of a picture and their neighbours lie in the flat array."""

    height: int
    """Rows, with the margin."""
    width: int
    shifts: list[int]
    """[offsets]: from a position to each neighbour."""
    reach: int
    """Longest shift: so many cells precede the first picture and follow the last."""
    cells: np.ndarray
    """[N]: the cell of every grid position."""

    @property
    def size(self) -> int:
        """Cells of a picture."""
        return self.height * self.width


def make_raster(grid: Grid, spec: KeySpec) -> Raster:
    offsets = np.array(NEIGHBORHOODS[spec.neighborhood])
    down, right = np.abs(offsets).max(axis=0) if spec.borders == "zero" else (0, 0)
    height, width = grid.height + int(down), grid.width + int(right)
    shifts = (offsets @ (width, 1)).tolist()
    row, column = np.divmod(np.arange(grid.size), grid.width)
    return Raster(height, width, shifts, max(map(abs, shifts)), row * width + column)


class DeviceKeys(Protocol):
    """What the search needs to know of keys; `parts` are queries [B, offsets, code_dim]."""

    def prepare(self, parts: Tensor) -> Any:
        """What `add` wants to know of the queries."""
        ...

    def add(self, distances: Tensor, prepared: Any, first: int) -> None:
        """Add to [B, cells] how far the cells from `first` on are from the queries."""
        ...

    def error(self, parts: np.ndarray) -> np.ndarray:
        """How far [B] the sums may be from the truth, besides a small share of the distance."""
        ...

    def numbers(self, cells: Tensor) -> Iterator[Tensor]:
        """Numbers [n] int64, several: keys of cells [n] are equal if all of these are."""
        ...

    def differences(self, part: Tensor, cells: Tensor) -> Tensor:
        """Squared distances [n] of cells [n] to one query [offsets, code_dim], as sums of squares:
        without `error`."""
        ...


def per_cell(keys: Keys) -> int:
    """Bytes that a position takes."""
    if keys.spec.space == "codebook":
        return _code_type(keys).itemsize
    assert keys.vectors is not None
    return 4 * (keys.vectors.shape[-1] + 1)


def scratch_per_cell(keys: Keys, queries: int) -> int:
    """Bytes that a search needs in passing for every position that it looks at."""
    sums = 4 + 4 + 1 + 16  # distances, what is added to them, a mask, candidates
    if keys.spec.space == "codebook":
        return 4 + queries * sums
    return queries * (sums + 4 * keys.spec.offsets)


def put_keys(keys: Keys, raster: Raster, images: np.ndarray, device: torch.device) -> DeviceKeys:
    """The keys of these pictures [n] on a device.

    Raises:
        InputError: A token is no code of the codebook.
    """
    kind = _Codes if keys.spec.space == "codebook" else _Vectors
    return kind(keys, raster, images, device)


def _code_type(keys: Keys) -> torch.dtype:
    return torch.int16 if len(keys.codebook) < 2**15 else torch.int32


def _batches(images: np.ndarray, grid: Grid) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows of `images`, their numbers), a few at a time."""
    step = max(1, CHUNK // grid.size)
    for first in range(0, len(images), step):
        rows = slice(first, first + step)
        yield rows, images[rows]


class _Codes:
    """Codes of the neighbours: a distance is a sum of table entries, one an offset."""

    def __init__(
        self, keys: Keys, raster: Raster, images: np.ndarray, device: torch.device
    ) -> None:
        codes, grid = len(keys.codebook), keys.grid
        self.raster = raster
        rows = np.pad(keys.codebook, ((0, 1), (0, 0))).T  # [code_dim, codes + 1]
        self.rows = torch.from_numpy(np.ascontiguousarray(rows)).to(device)
        length = 2 * raster.reach + len(images) * raster.size
        self.codes = torch.full((length,), codes, dtype=_code_type(keys), device=device)
        pictures = self.codes[raster.reach : length - raster.reach]
        pictures = pictures.view(-1, raster.height, raster.width)[:, : grid.height, : grid.width]
        for rows, numbers in _batches(images, grid):
            tokens = keys.tokens[numbers]
            if tokens.max(initial=0) >= codes:
                raise InputError(
                    f"the index holds code {tokens.max()} of a codebook of {codes}: its file has "
                    "changed; load it again"
                )
            tokens = torch.from_numpy(tokens.astype(np.int32)).to(self.codes.dtype)
            pictures[rows] = tokens.view(-1, grid.height, grid.width).to(device)

    def prepare(self, parts: Tensor) -> Tensor:
        """Tables [offsets, B, codes + 1]; the last entry is that of a neighbour outside."""
        tables = parts.new_zeros((*parts.shape[1::-1], self.rows.shape[1]))
        for numbers, rows in zip(parts.permute(2, 1, 0).unsqueeze(-1), self.rows, strict=True):
            differences = numbers - rows  # [offsets, B, codes + 1]
            tables.addcmul_(differences, differences)
        return tables

    def add(self, distances: Tensor, prepared: Tensor, first: int) -> None:
        reach, count = self.raster.reach, distances.shape[1]
        codes = self.codes[first : first + count + 2 * reach].int()
        for table, shift in zip(prepared, self.raster.shifts, strict=True):
            start = reach + shift
            distances += table.index_select(1, codes[start : start + count])

    def error(self, parts: np.ndarray) -> np.ndarray:
        return np.zeros(len(parts), np.float32)

    def numbers(self, cells: Tensor) -> Iterator[Tensor]:
        for shift in self.raster.shifts:
            yield self.codes[cells + (self.raster.reach + shift)].long()

    def differences(self, part: Tensor, cells: Tensor) -> Tensor:
        sums = torch.zeros(len(cells), device=cells.device)
        for query, codes in zip(part, self.numbers(cells), strict=True):
            sums += (query[:, None] - self.rows[:, codes]).square().sum(dim=0)
        return sums


class _Vectors:
    """Vectors of the neighbours, with their squared lengths: a distance is a sum of products."""

    def __init__(
        self, keys: Keys, raster: Raster, images: np.ndarray, device: torch.device
    ) -> None:
        assert keys.vectors is not None
        grid, dim = keys.grid, keys.vectors.shape[-1]
        self.raster = raster
        length = 2 * raster.reach + len(images) * raster.size
        self.vectors = torch.zeros((dim + 1, length), device=device)
        pictures = self.vectors[:, raster.reach : length - raster.reach]
        pictures = pictures.view(dim + 1, -1, raster.height, raster.width)
        pictures = pictures[:, :, : grid.height, : grid.width]
        for rows, numbers in _batches(images, grid):
            vectors = torch.from_numpy(keys.vectors[numbers]).to(device).permute(2, 0, 1)
            vectors = vectors.reshape(dim, -1, grid.height, grid.width)
            pictures[:dim, rows] = vectors
            pictures[dim, rows] = vectors.square().sum(dim=0)
        self.longest = float(self.vectors[dim].nan_to_num(0, 0).amax().sqrt())

    def prepare(self, parts: Tensor) -> tuple[Tensor, Tensor]:
        """Factors [offsets * B, code_dim + 1] of vectors and squared lengths, and |q|² [B]."""
        factors = torch.cat((-2 * parts, torch.ones_like(parts[..., :1])), dim=-1)
        return factors.transpose(0, 1).flatten(0, 1), parts.square().sum(dim=(1, 2))

    def add(self, distances: Tensor, prepared: tuple[Tensor, Tensor], first: int) -> None:
        """Adds |q|², and |v|² - 2 q·v of every neighbour."""
        reach, (batch, count) = self.raster.reach, distances.shape
        factors, lengths = prepared
        distances += lengths[:, None]
        products = factors @ self.vectors[:, first : first + count + 2 * reach]
        for sums, shift in zip(products.split(batch), self.raster.shifts, strict=True):
            distances += sums[:, reach + shift : reach + shift + count]

    def error(self, parts: np.ndarray) -> np.ndarray:
        offsets, dim = parts.shape[1:]
        lengths = np.linalg.norm(parts, axis=-1)
        products = (2 * lengths * self.longest + self.longest**2).sum(axis=-1)
        largest = ((lengths + self.longest) ** 2).sum(axis=-1)  # of the sums on the way
        factor = 2 * PRODUCT.get(self.vectors.device.type, COARSEST)
        return factor * products + (dim + offsets + 8) * FLOAT32 * largest

    def numbers(self, cells: Tensor) -> Iterator[Tensor]:
        for row in self.vectors[:-1]:
            for shift in self.raster.shifts:
                yield row[cells + (self.raster.reach + shift)].view(torch.int32).long()

    def differences(self, part: Tensor, cells: Tensor) -> Tensor:
        reach = self.raster.reach
        sums = torch.zeros(len(cells), device=cells.device)
        for query, shift in zip(part, self.raster.shifts, strict=True):
            vectors = self.vectors[:-1, cells + (reach + shift)]  # [code_dim, n]
            sums += (query[:, None] - vectors).square().sum(dim=0)
        return sums
