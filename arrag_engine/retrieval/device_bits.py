"""Exact search by bits on a device: the hits of `Bits`, ties and distances included.

The numbers of keys and queries are 1, -1 and 0. Distances, and all sums on the way to them, are
whole numbers up to 4 · 24 · 16, which half precision holds: one product of matrices gives exact
distances of many queries. What a place adds is counted in parts, as in `Bits`. Every position is
held once, as a code of 2 bytes.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..index.keys import Keys
from ..index.search.bits import NEVER, PARTS, place_terms

PATCHES = 2**17
"""Patches compared at once; with a distance, their number fits 31 bits."""
QUERIES = 128
"""Queries compared at once."""
PASSING = 2 + 8 + 8 + 8
"""Bytes that a query and a patch take in passing: distance, with what is added, rank, selection."""


class DeviceBits:
    """Exact search over the keys of pictures, copied to a device at the first search.

    Queries consist of 1, -1, 0 and NaN. A number that is NaN does not count.

    Args:
        images: Numbers [n], ascending, of the pictures to search; all when absent.
    """

    kind = "bits"
    recall = 1.0

    def __init__(self, keys: Keys, device: torch.device, images: np.ndarray | None = None) -> None:
        self.keys, self.device = keys, device
        self.images = np.arange(len(keys.tokens)) if images is None else images
        self.dtype = torch.float32 if device.type == "cpu" else torch.float16
        self.signs = keys.spec.offsets * keys.codebook.shape[1]
        """Numbers of a key that are signs."""
        self.parts = PARTS if keys.spec.position_weight else 1
        """Of a squared distance, counted in whole numbers."""
        self.never = NEVER * self.parts
        """Stands for the distance of a patch that must not be found."""

    @property
    def settings(self) -> dict[str, str]:
        return {"recall": str(self.recall)}

    @property
    def size(self) -> int:
        return len(self.images) * len(self.keys.active)

    @property
    def nbytes(self) -> int:
        """What the search takes on the device at the most, what it needs in passing included."""
        held = 2 * len(self.images) * (self.keys.grid.size + 1)
        at_once = min(self.size, PATCHES)
        return held + at_once * (QUERIES * PASSING + 8 * self.keys.spec.offsets + 8 * self.keys.dim)

    @cached_property
    def _tokens(self) -> Tensor:
        """Codes [n, N + 1] of the pictures; the last stands for what lies outside."""
        tokens = torch.from_numpy(self.keys.tokens[self.images].astype(np.int32))
        outside = tokens.new_full((len(tokens), 1), len(self.keys.codebook))
        whole = torch.cat((tokens, outside), dim=1)
        small = torch.int16 if len(self.keys.codebook) < 2**15 else torch.int32
        return whole.to(small).to(self.device)

    @cached_property
    def _rows(self) -> Tensor:
        """Numbers [codes + 1, bits] of the codes; the last is outside, zeros."""
        rows = np.pad(self.keys.codebook, ((0, 1), (0, 0)))
        return torch.from_numpy(rows).to(self.device, self.dtype)

    @cached_property
    def _around(self) -> Tensor:
        """The neighbours [A, offsets] of every place that has a key; N = outside."""
        around = np.where(self.keys.neighbors < 0, self.keys.grid.size, self.keys.neighbors)
        return torch.from_numpy(around).to(self.device)

    @cached_property
    def _outside(self) -> Tensor:
        """1 where a place that has a key has no neighbour, else 0 [A, offsets]."""
        return torch.from_numpy(self.keys.neighbors < 0).to(self.device, self.dtype)

    def search(
        self, queries: np.ndarray, k: int, complete: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `PartialSearcher`."""
        k = min(k, self.size)
        ranks = np.empty((len(queries), k), np.int64)
        for first in range(0, len(queries) if k else 0, QUERIES):
            rows = slice(first, first + QUERIES)
            ranks[rows] = self._ranks(queries[rows].astype(np.float32), k, complete)
        distances, places = np.divmod(ranks, max(1, self.size))
        image, slot = np.divmod(places, len(self.keys.active))
        ids = self.images[image] * len(self.keys.active) + slot
        missing = distances >= self.never
        squared = np.where(missing, np.inf, distances / self.parts).astype(np.float32)
        return squared, np.where(missing, -1, ids)

    @torch.no_grad()
    def _ranks(self, queries: np.ndarray, k: int, complete: bool) -> np.ndarray:
        """Distance, in parts, · size + place [B, k] of the nearest patches of queries [B, dim]."""
        queries, places = np.split(queries, [self.signs], axis=1)
        asked = torch.from_numpy(np.ascontiguousarray(queries)).to(self.device)
        added = self._added(asked, places, complete)
        counts = ~asked.isnan()
        asked = asked.nan_to_num(0.0)
        # (q - v)² = q² + v² - 2 q·v, summed over the numbers that count.
        factors = torch.cat((counts, -2 * asked), dim=1).to(self.dtype)
        lengths = asked.square().sum(dim=1, keepdim=True).to(self.dtype)
        best = torch.empty(len(asked), 0, dtype=torch.int64, device=self.device)
        per_image = len(self.keys.active)
        step = max(1, PATCHES // per_image)
        for first, tokens in zip(
            range(0, len(self.images), step), self._tokens.split(step), strict=True
        ):
            keys = self._rows[tokens[:, self._around].long()].view(len(tokens) * per_image, -1)
            distances = torch.addmm(lengths, factors, torch.cat((keys.square(), keys), dim=1).T)
            near = nearest_first(distances, k, self.parts, added)
            place, distance = near % len(keys), near // len(keys)
            ranks = distance * self.size + place + first * per_image
            best = torch.cat((best, ranks), dim=1).sort(dim=1).values[:, :k]
        return best.cpu().numpy()

    def _added(self, asked: Tensor, places: np.ndarray, complete: bool) -> Tensor | None:
        """What comes to the distances of the patches of every picture [B, A] int64, in parts: what
        their place adds, and whether they lack a neighbour that a query [B, signs] knows."""
        if not complete and self.parts == 1:
            return None
        added = torch.from_numpy(place_terms(self.keys, places)).to(self.device, torch.int64)
        if complete:
            known = asked.unflatten(1, (self.keys.spec.offsets, -1)).abs().amax(dim=2) > 0
            added += self.never * (known.to(self.dtype) @ self._outside.T > 0)
        return added

    def restrict(self, images: np.ndarray) -> DeviceBits:
        return DeviceBits(self.keys, self.device, np.intersect1d(self.images, images))

    def reconstruct(self, ids: np.ndarray) -> np.ndarray:
        return self.keys.rows(ids)

    def arrays(self) -> dict[str, np.ndarray]:
        raise ValueError("an index that is searched on a device cannot be saved")


def nearest_first(distances: Tensor, k: int, parts: int = 1, added: Tensor | None = None) -> Tensor:
    """Distance · n + place [B, <= k] int64 of the smallest of whole distances [B, n], ascending:
    equal ones by the lower place.

    Args:
        parts: In which distances are counted.
        added: What comes to them [B, A], in parts, for each A of the n.
    """
    count = distances.shape[1]
    places = torch.arange(count, device=distances.device, dtype=torch.int32)
    if added is None:
        ranks = distances.to(torch.int32).mul_(count).add_(places)
    else:
        whole = distances.to(torch.int64).mul_(parts)
        whole = (whole.unflatten(1, (-1, added.shape[1])) + added[:, None]).flatten(1)
        ranks = whole.mul_(count).add_(places)
    return ranks.topk(min(k, count), dim=1, largest=False).values.long()
