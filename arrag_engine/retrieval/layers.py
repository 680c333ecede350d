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
from .mixture import Found, Proposal
from .query import Asked
from .retriever import Retriever

Proposals = tuple[Proposal | None, ...]
"""What each layer found for one position; None where it does not work or no neighbour stands."""


@dataclass(frozen=True, eq=False)
class FoundByLayers:
    """What the layers found for `count` positions."""

    count: int
    parts: tuple[tuple[np.ndarray, Found] | None, ...]
    """Of each layer: the positions, by their numbers, ascending, and what it found for them."""

    def at(self, i: int) -> Proposals:
        """Of one position."""
        return tuple(None if part is None else _at(*part, i) for part in self.parts)

    def part(self, first: int, count: int) -> FoundByLayers:
        """Of the positions from `first` on."""
        parts = (None if one is None else _part(*one, first, count) for one in self.parts)
        return FoundByLayers(count, tuple(parts))


def _at(rows: np.ndarray, found: Found, i: int) -> Proposal | None:
    place = int(np.searchsorted(rows, i))
    return found.at(place) if place < len(rows) and rows[place] == i else None


def _part(
    rows: np.ndarray, found: Found, first: int, count: int
) -> tuple[np.ndarray, Found] | None:
    begin, end = np.searchsorted(rows, (first, first + count)).tolist()
    if begin == end:
        return None
    return rows[begin:end] - first, found.part(slice(begin, end))


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
        found = self.find(asked)
        return [found.at(i) for i in range(found.count)]

    def find(self, asked: Sequence[Asked]) -> FoundByLayers:
        """`propose`, of all positions as one."""
        count = sum(len(one.positions) for one in asked)
        parts = []
        for layer in self.each:
            masks = [
                layer.works(one.known)[one.positions] & layer.query.knows(one) for one in asked
            ]
            wanted = [one.at(mask) for one, mask in zip(asked, masks, strict=True)]
            nothing = layer.neighbours == 0 or not any(len(one.positions) for one in wanted)
            rows = np.flatnonzero(np.concatenate(masks))
            parts.append(None if nothing else (rows, layer.find(wanted)))
        return FoundByLayers(count, tuple(parts))

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
        self, found: FoundByLayers, positions: np.ndarray, vocab: int, device: torch.device
    ) -> tuple[np.ndarray, Tensor]:
        """(Σ λ_j [P], Σ λ_j p_j [P, vocab] on a device) of what was found for positions [P]."""
        totals = np.zeros(found.count)
        proposed = torch.zeros(found.count, vocab, device=device)
        for layer, own in zip(self.each, found.parts, strict=True):
            if own is None:
                continue
            rows, its = own
            weights = layer.weights(its.hits, positions[rows]) * its.factors
            totals[rows] += weights
            part = layer.distributions(its.hits, vocab, device)
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
