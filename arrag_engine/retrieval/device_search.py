"""Exact search on a device: the hits of `Flat`, ties and distances included.

The device finds candidates: every patch whose distance, as rounded there, may belong to the k
smallest, by a bound on the rounding. They are few more than k. The host then ranks them with the
arithmetic of `Flat`, so that hits equal its hits to the last bit.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..index.keys import Keys
from ..index.search.flat import Subset
from .device_keys import (
    FLOAT32,
    DeviceKeys,
    make_raster,
    per_cell,
    put_keys,
    scratch_per_cell,
)

SCRATCH = 256 * 2**20
"""Bytes that a search may take on the device in passing; more only where one picture needs more."""
QUERIES = 16
"""Queries that are searched for at once."""
MANY = 1024
"""Candidates of a query that the host ranks without further ado."""
LARGEST = torch.finfo(torch.float32).max
"""A distance above it, inf, is no patch's."""
PIECE = 2**18
"""Candidates that are thinned out at once where there are more: it takes about 100 bytes each."""


class DeviceSearcher:
    """Exact search over the keys of pictures, copied to a device at the first search.

    Args:
        images: Numbers [n], ascending, of the pictures to search; all when absent.

    Raises:
        InputError: At the first search: a token is no code of the codebook.
    """

    kind = "device"

    def __init__(self, keys: Keys, device: torch.device, images: np.ndarray | None = None) -> None:
        self.keys = keys
        self.device = device
        self.images = np.arange(len(keys.tokens)) if images is None else images
        self.raster = make_raster(keys.grid, keys.spec)
        self._slots = np.full(self.raster.size, -1)
        self._slots[self.raster.cells[keys.active]] = np.arange(len(keys.active))

    @property
    def recall(self) -> float:
        return 1.0

    @property
    def choice(self) -> str:
        return ""

    @property
    def settings(self) -> dict[str, str]:
        return {"recall": "1.0"}

    @property
    def size(self) -> int:
        return len(self.images) * len(self.keys.active)

    @property
    def nbytes(self) -> int:
        """What the search takes on the device at the most, its scratch included."""
        cells = len(self.images) * self.raster.size
        tables = 2 * 4 * QUERIES * self.keys.spec.offsets * (len(self.keys.codebook) + 1)
        scratch = min(cells, self._at_once(QUERIES) * self.raster.size)
        return (
            (cells + 2 * self.raster.reach) * per_cell(self.keys)
            + self.keys.codebook.nbytes
            + (tables if self.keys.spec.space == "codebook" else 0)
            + scratch * scratch_per_cell(self.keys, QUERIES)
        )

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Searcher`."""
        k = min(k, self.size)
        distances, ids = _nothing(len(queries), k)
        for first in range(0, len(queries) if k else 0, QUERIES):
            rows = slice(first, first + QUERIES)
            distances[rows], ids[rows] = self._search(queries[rows].astype(np.float32), k)
        return distances, ids

    def restrict(self, images: np.ndarray) -> DeviceSearcher:
        return DeviceSearcher(self.keys, self.device, np.unique(images))

    def reconstruct(self, ids: np.ndarray) -> np.ndarray:
        return self.keys.rows(ids)

    def arrays(self) -> dict[str, np.ndarray]:
        raise ValueError("an index that is searched on a device cannot be saved")

    @cached_property
    def _held(self) -> DeviceKeys:
        return put_keys(self.keys, self.raster, self.images, self.device)

    @cached_property
    def _places(self) -> Tensor:
        """What the position term appends to the keys, by cell [cells, 2 or 0]."""
        places = np.zeros((self.raster.size, self.keys.places.shape[1]), np.float32)
        places[self.raster.cells[self.keys.active]] = self.keys.places
        return torch.from_numpy(places).to(self.device)

    @cached_property
    def _inactive(self) -> Tensor:
        """[cells]: inf where no key is, else 0."""
        return torch.from_numpy(np.where(self._slots < 0, np.inf, 0).astype(np.float32)).to(
            self.device
        )

    def _at_once(self, queries: int) -> int:
        """Pictures that are looked at together."""
        return max(1, SCRATCH // (scratch_per_cell(self.keys, queries) * self.raster.size))

    @torch.no_grad()
    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances and patches [B, k] of a few queries [B, dim]."""
        asked = _Asked(self, queries)
        best = _nothing(len(queries), k)
        step = self._at_once(len(queries))
        for first in range(0, len(self.images), step):
            count = min(step, len(self.images) - first)
            ids = self._ids(asked.candidates(first, count, k, best[0][:, -1]))
            best = self._rank(queries, np.union1d(ids, best[1][best[1] >= 0]), k)
        return best

    def _ids(self, cells: np.ndarray) -> np.ndarray:
        """Patches [n] at these cells [n] of the array."""
        image, cell = np.divmod(cells, self.raster.size)
        return self.images[image] * len(self.keys.active) + self._slots[cell]

    def _rank(self, queries: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest [B, k] of these patches [n], ascending, as `Flat` ranks them."""
        subset = Subset(ids, self.keys.rows(ids), len(self.keys.active))
        distances, ids = _nothing(len(queries), k)
        found = slice(None), slice(min(k, subset.size))
        distances[found], ids[found] = subset.search(queries, k)
        return distances, ids


def _nothing(batch: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and patches [B, k] where nothing was found."""
    return np.full((batch, k), np.inf, np.float32), np.full((batch, k), -1)


class _Asked:
    """A few queries [B, dim], put on the device, and the search for their candidates."""

    def __init__(self, searcher: DeviceSearcher, queries: np.ndarray) -> None:
        keys = searcher.keys
        places = keys.places.shape[1]
        self.held, self.raster = searcher._held, searcher.raster
        asked = torch.from_numpy(queries).to(searcher.device)
        own = keys.dim - places
        shape = len(queries), keys.spec.offsets, own // keys.spec.offsets
        self.parts = asked[:, :own].view(shape)
        self.placed = places > 0
        self.away = searcher._inactive.expand(len(queries), -1)
        """Share of the position term [B, cells] in the distance; inf where no key is."""
        if self.placed:
            self.away = self.away + (asked[:, None, own:] - searcher._places).square().sum(dim=-1)
        self.prepared = self.held.prepare(self.parts)
        self.error = 3 * self.held.error(queries[:, :own].reshape(shape)) + 1e-30
        self.active_rows = len(np.unique(keys.active // keys.grid.width))
        # Every operation on the way to a sum of squares adds at most a rounding to it: those of
        # the device and of the host together, with some to spare. Three times, for they may be
        # wrong in opposite directions, about a patch and about the last of the k nearest.
        self.margin = 1 + 3 * (2 * keys.dim + 16) * FLOAT32

    def candidates(self, first: int, count: int, k: int, known: np.ndarray) -> np.ndarray:
        """Cells [n], of any query, that may be among the k nearest in `count` pictures.

        Args:
            known: Distances [B] that k patches found before do not exceed.
        """
        start = first * self.raster.size
        distances = self.away[:, None].repeat(1, count, 1).flatten(1)  # [B, count * cells]
        self.held.add(distances, self.prepared, start)
        bounds = torch.from_numpy(np.stack((known, self.error)).astype(np.float32))
        earlier, error = bounds.to(distances.device)
        limit = self._limit(distances, k).nan_to_num(torch.inf).minimum(earlier)
        limit = (limit * self.margin + error).clamp(max=LARGEST)
        rows, cells = (distances <= limit[:, None]).nonzero(as_tuple=True)
        cells = cells + start
        if len(cells) > max(MANY, k):
            parts = cells.split(torch.bincount(rows, minlength=len(distances)).tolist())
            cells = torch.cat([self._thin(row, part, k) for row, part in enumerate(parts)])
        return cells.cpu().numpy()

    def _limit(self, distances: Tensor, k: int) -> Tensor:
        """What k of the distances [B, cells] do not exceed [B]; inf if there are fewer.

        The k-th smallest of the smallest of each grid row is a little larger than the k-th smallest
        of all, and much sooner found.
        """
        rows = distances.unflatten(1, (-1, self.raster.width)).amin(dim=-1)
        if rows.shape[1] // self.raster.height * self.active_rows >= k:
            distances = rows
        elif distances.shape[1] < k:
            return distances.new_full((len(distances),), torch.inf)
        return distances.topk(k, largest=False, sorted=True).values[:, -1]

    def _thin(self, row: int, cells: Tensor, k: int) -> Tensor:
        """Those of the cells [n], ascending, that may be among the k nearest of a query.

        Of many, only those near enough by a finer calculation; of still many, the first k of equal
        keys. What is not among the k nearest of a piece is not among those of all.
        """
        if len(cells) <= max(MANY, k):
            return cells
        if len(cells) > PIECE:
            return torch.cat([self._thin(row, piece, k) for piece in cells.split(PIECE)])
        away = self.away[row, cells % self.raster.size]
        distances = self.held.differences(self.parts[row], cells) + away
        limit = distances.topk(k, largest=False, sorted=True).values[-1]
        cells = cells[distances <= limit * self.margin + 1e-30]
        return cells if len(cells) <= max(MANY, k) else cells[self._first(cells, k)]

    def _first(self, cells: Tensor, k: int) -> Tensor:
        """Mask [n] of the first k cells, of cells [n] in ascending order, of every key."""
        group = cells % self.raster.size if self.placed else torch.zeros_like(cells)
        for numbers in self.held.numbers(cells):
            group = torch.unique((group << 32) + numbers, return_inverse=True)[1]
        order = group.argsort(stable=True)
        counts = torch.bincount(group)
        first = (counts.cumsum(0) - counts)[group[order]]
        mask = torch.empty_like(order, dtype=torch.bool)
        mask[order] = torch.arange(len(order), device=order.device) - first < k
        return mask
