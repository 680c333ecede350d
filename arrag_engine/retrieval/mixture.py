"""DAiD: the distribution that retrieved patches propose, mixed with the model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..index import Hits
from ..sampling import truncate
from ..settings import RetrievalOptions

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Proposal:
    """What was found for one position."""

    surroundings: bytes
    """The tokens of the query; when they change, the position must be looked up again."""
    hits: Hits
    """[1, K]."""
    factor: float = 1.0
    """Of the weight, at the moment of the look-up."""

    @property
    def found(self) -> bool:
        return bool(self.hits.found().any())


@dataclass(frozen=True, eq=False)
class Found:
    """What one look-up found for many positions."""

    around: Sequence[Any] | np.ndarray
    """[P]: for each position, what holds the bytes of its `surroundings`."""
    hits: Hits
    """[P, K]."""
    factors: np.ndarray
    """[P]."""

    def at(self, i: int) -> Proposal:
        """Of one position."""
        own = self.hits.rows(slice(i, i + 1))
        return Proposal(bytes(self.around[i]), own, float(self.factors[i]))

    def part(self, rows: slice) -> Found:
        """Of some positions."""
        return Found(self.around[rows], self.hits.rows(rows), self.factors[rows])


def proposal_distribution(
    hits: Hits, options: RetrievalOptions, vocab: int, device: torch.device = CPU
) -> Tensor:
    """p_retrieval [B, vocab] float32 of hits [B, K] on a device; all zero where nothing was
    found."""
    # A GPU adds in an order of its own, which is another each time: it receives sums.
    made = device if options.duplicates == "first" else CPU
    distances = torch.from_numpy(hits.distances).to(made)  # [B, K], inf = nothing
    codes = torch.from_numpy(np.maximum(hits.codes, 0)).long().to(made)
    if options.duplicates == "first":
        nearest = distances.new_full((len(codes), vocab), torch.inf)
        nearest = nearest.scatter_reduce(1, codes, distances, "amin")
        probs = torch.softmax(-nearest / options.temperature, dim=-1)
    else:
        shares = torch.softmax(-distances / options.temperature, dim=-1)
        probs = shares.new_zeros((len(codes), vocab)).scatter_add(1, codes, shares).to(device)
    found = torch.from_numpy(hits.found().any(axis=1)).to(device)
    return truncate(probs.where(found[:, None], 0.0), 0, options.top_p)


def hit_shares(hits: Hits, options: RetrievalOptions, proposed: np.ndarray) -> np.ndarray:
    """What each of the hits [B, K] gives to p_retrieval [B, K]; its code's probability is the sum
    over the hits with that code.

    Args:
        proposed: Probabilities [B, K] of the codes of the hits.
    """
    found = hits.found()
    rows = np.arange(len(found))[:, None]
    pairs = (rows * (hits.codes.max(initial=0) + 1) + np.maximum(hits.codes, 0))[found]
    _, firsts, groups = np.unique(pairs, return_index=True, return_inverse=True)
    if options.duplicates == "first":
        part = np.zeros(len(pairs))
        part[firsts] = 1.0
    else:
        nearest = np.broadcast_to(hits.distances[:, :1], found.shape)[found]
        part = np.exp(-(hits.distances[found] - nearest) / options.temperature)
        total = np.bincount(groups, part)[groups]
        part = np.divide(part, total, out=np.zeros_like(part), where=total > 0)
    shares = np.zeros(found.shape)
    shares[found] = part * proposed[found]
    return shares


def mix(p_model: Tensor, p_retrieval: Tensor, weight: float) -> Tensor:
    """(1 - λ) p_model + λ p_retrieval; p_model itself where nothing was retrieved."""
    if weight == 0:
        return p_model
    return (1 - weight) * p_model + weight * p_retrieval
