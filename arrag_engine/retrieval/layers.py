"""Several layers in one drawing: p = (1 - Σ λ_j) p_model + Σ λ_j p_j.

The mixture is drawn exactly by choosing the component first: a uniform u falls into one of the
intervals [0, λ_1), [λ_1, λ_1 + λ_2), …, or above them all, where the model draws. A layer that does
not work at a position, or finds nothing there, has λ_j = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..grid import DrawingOrder
from ..index import Hits
from .mixture import Proposal
from .query import Asked
from .retriever import Retriever

Proposals = tuple[Proposal | None, ...]
"""What each layer found for one position; None where it does not work or no neighbour stands."""


@dataclass(frozen=True, eq=False)
class Layers:
    """The layers of a drawing, in the order in which they share the uniform."""

    each: tuple[Retriever, ...]

    def __bool__(self) -> bool:
        return bool(self.each)

    def receiving(self, candidates: int) -> Layers:
        """The layers, which find what an adapter receives too."""
        return Layers(tuple(replace(layer, candidates=candidates) for layer in self.each))

    @cached_property
    def active(self) -> np.ndarray:
        """Mask [N] of the positions where a layer works. There must be a layer."""
        return np.any([layer.active for layer in self.each], axis=0)

    @cached_property
    def largest_weights(self) -> np.ndarray:
        """No Σ λ_j,i [N] is larger: where the noise lies above it, nothing needs to be looked
        up."""
        return np.sum([layer.largest_weights for layer in self.each], axis=0)

    def mixes(self, position: int) -> bool:
        """Whether retrieval can decide the token at this position."""
        return any(layer.mixes(position) for layer in self.each)

    def looks_up(self, position: int) -> bool:
        """Whether the hits of this position are of use to anything."""
        return any(layer.looks_up(position) for layer in self.each)

    def informed(self, known: np.ndarray) -> np.ndarray:
        """Mask [N] of the positions where a layer works and a neighbour stands, for a mask [N] of
        the tokens that stand."""
        each = [layer.works(known) & layer.query.informed(known) for layer in self.each]
        return np.any(each, axis=0)

    def propose(self, asked: Sequence[Asked]) -> list[Proposals]:
        """What the layers find for every position of these pictures, in one look-up each. At each
        position a layer works."""
        if len(self.each) == 1 and all(one.known is None for one in asked):
            return [(one,) for one in self.each[0].propose(asked)]
        count = sum(len(one.positions) for one in asked)
        found: list[list[Proposal | None]] = [[None] * len(self.each) for _ in range(count)]
        for j, layer in enumerate(self.each):
            masks = [
                layer.works(one.known)[one.positions] & layer.query.knows(one) for one in asked
            ]
            wanted = [one.at(mask) for one, mask in zip(asked, masks, strict=True)]
            if layer.neighbours == 0 or not any(len(one.positions) for one in wanted):
                continue
            proposals = iter(layer.propose(wanted))
            for i in np.flatnonzero(np.concatenate(masks)):
                found[i][j] = next(proposals)
        return [tuple(one) for one in found]

    def still_hold(self, proposals: Proposals, asked: Asked, position: int) -> bool:
        """Whether the tokens make the queries that the proposals answer."""
        return all(
            proposal is None or layer.still_holds(proposal, asked, position)
            for layer, proposal in zip(self.each, proposals, strict=True)
        )

    def weights(self, proposals: Proposals, position: int) -> list[float]:
        """λ_j of each layer; 0 where it found nothing."""
        return [
            0.0 if proposal is None else layer.weight(proposal, position)
            for layer, proposal in zip(self.each, proposals, strict=True)
        ]

    def component(self, proposals: Proposals, position: int, uniform: float) -> int | None:
        """The layer that draws a token; None: the model does."""
        upper = 0.0
        for j, weight in enumerate(self.weights(proposals, position)):
            upper += weight
            if weight and uniform < upper:
                return j
        return None

    def distribution(self, proposals: Proposals, layer: int, vocab: int) -> Tensor:
        """p_j [vocab] of a layer that found something."""
        proposal = proposals[layer]
        assert proposal is not None
        return self.each[layer].distribution(proposal, vocab)

    def mixture(self, proposals: Proposals, position: int, vocab: int) -> tuple[float, Tensor]:
        """(Σ λ_j, Σ λ_j p_j / Σ λ_j [vocab]): all layers as one that mixes with the model."""
        weights = self.weights(proposals, position)
        total = sum(weights)
        if total == 0:
            return 0.0, torch.zeros(vocab)
        parts = [
            self.distribution(proposals, j, vocab).mul(weight / total)
            for j, weight in enumerate(weights)
            if weight
        ]
        return total, parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)

    def proposed(
        self, found: Sequence[Proposals], positions: np.ndarray, vocab: int, device: torch.device
    ) -> tuple[np.ndarray, Tensor]:
        """(Σ λ_j [P], Σ λ_j p_j [P, vocab] on a device) of what was found for positions [P]."""
        totals = np.zeros(len(found))
        proposed = torch.zeros(len(found), vocab, device=device)
        for j, layer in enumerate(self.each):
            own = [(i, one[j]) for i, one in enumerate(found)]
            own = [(i, proposal) for i, proposal in own if proposal is not None]
            if not own:
                continue
            rows, hits = np.array([i for i, _ in own]), Hits.concat([one.hits for _, one in own])
            weights = layer.weights(hits, positions[rows]) * [one.factor for _, one in own]
            totals[rows] += weights
            part = layer.distributions(hits, vocab, device)
            shares = torch.from_numpy(weights.astype(np.float32)).to(device)
            proposed[torch.from_numpy(rows).to(device)] += shares[:, None] * part
        return totals, proposed

    def check_serve(self, order: DrawingOrder) -> None:
        """Refuse a model whose drawing order leaves queries without their tokens; see
        `Retriever.check_serves`."""
        for layer in self.each:
            if any(map(layer.looks_up, range(len(layer.active)))):
                layer.check_serves(order)


def layers_of(*retrievers: Retriever | None) -> tuple[Retriever, ...]:
    """Those that are there."""
    return tuple(one for one in retrievers if one is not None)


def nearest_codes(proposals: Proposals, k: int) -> np.ndarray:
    """Codes [<= k] of the nearest patches that the layers found for a position, by distance and
    then by layer; -1 where nothing was found."""
    hits = [one.hits.nearest(k) for one in proposals if one is not None]
    if not hits:
        return np.empty(0, np.int64)
    if len(hits) == 1:
        return hits[0].codes[0]
    distances = np.concatenate([one.distances[0] for one in hits])
    codes = np.concatenate([one.codes[0] for one in hits])
    return codes[np.argsort(distances, kind="stable")[:k]]
