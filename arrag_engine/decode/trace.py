"""What retrieval did while a picture was drawn, position by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..grid import Grid
from ..index import Hits
from ..retrieval import Asked, Layers, PatchSource, Proposal, Proposals, Retriever
from ..settings import RetrievalOptions
from .canvas import Canvas

KEPT = 64
"""Neighbours that a trace keeps of each position and layer, the nearest ones."""
AT_ONCE = 256
"""Positions whose distributions are in memory together."""
LISTED = 8
"""Neighbours that the facts of a position list."""


@dataclass(frozen=True)
class Cost:
    """What a drawing took, all its pictures together."""

    passes: int
    """Of the model after the prompt."""
    seconds: float


@dataclass(frozen=True, eq=False)
class TraceLayer:
    """What one layer did; every array is indexed by position."""

    source: PatchSource
    options: RetrievalOptions
    weight: np.ndarray
    """[N] λ_i; 0 where the layer did not work or found nothing."""
    hits: Hits
    """[N, min(K, KEPT)]; nothing found where the layer did not work."""
    shares: np.ndarray
    """[N, min(K, KEPT)] what each hit gives to the probability that the layer gives its code."""
    p_retrieval: np.ndarray
    """[N] probability of the drawn token under the layer."""
    number: int = 0
    """Of the layer among those that were asked for. One with nothing to retrieve has no trace."""


@dataclass(frozen=True, eq=False)
class Trace:
    """Facts of one picture; every array is indexed by position."""

    grid: Grid
    tokens: np.ndarray
    """[N] codes drawn."""
    component: np.ndarray
    """[N] what drew the token: a layer alone (its number), `canvas.MODEL` or `canvas.STOOD`."""
    p_model: np.ndarray
    """[N] probability of the drawn token under the model; 0 of a kept one."""
    layers: tuple[TraceLayer, ...]
    cost: Cost

    @property
    def from_retrieval(self) -> np.ndarray:
        """[N] whether a layer alone drew the token."""
        return self.component >= 0

    @property
    def weight(self) -> np.ndarray:
        """Σ λ_j [N]."""
        return np.sum([np.zeros(self.grid.size), *(one.weight for one in self.layers)], axis=0)

    @property
    def responsibilities(self) -> np.ndarray:
        """r_j,i = λ_j p_j(x_i) / p(x_i) [layers, N]: how much of a token is owed to each layer."""
        parts = [one.weight * one.p_retrieval for one in self.layers]
        retrieved = np.array(parts).reshape(len(self.layers), self.grid.size)
        mixed = (1 - self.weight) * self.p_model + retrieved.sum(axis=0)
        return np.divide(retrieved, mixed, out=np.zeros_like(retrieved), where=mixed > 0)

    @property
    def responsibility(self) -> np.ndarray:
        """Σ r_j [N]: how much of a token is owed to retrieval."""
        return self.responsibilities.sum(axis=0)

    def source_shares(self, layer: int) -> np.ndarray:
        """Share of the picture that is owed to each source [sources] of a layer: the mean over the
        positions of its responsibility, shared out over the hits that proposed the token."""
        one = self.layers[layer]
        proposed = np.where(one.hits.codes == self.tokens[:, None], one.shares, 0.0)
        total = proposed.sum(axis=1, keepdims=True)
        part = np.divide(proposed, total, out=np.zeros_like(proposed), where=total > 0)
        owed = part * self.responsibilities[layer][:, None] / self.grid.size
        found = one.hits.found()
        return np.bincount(one.hits.sources[found], owed[found], minlength=len(one.source.sources))

    def position_facts(self, position: int) -> dict:
        """The facts of one position as plain values."""
        row, column = divmod(position, self.grid.width)
        facts = {
            "row": row,
            "column": column,
            "token": int(self.tokens[position]),
            "weight": float(self.weight[position]),
        }
        layers = [
            self._layer_facts(j, position)
            for j, one in enumerate(self.layers)
            if one.hits.found()[position].any()
        ]
        if not layers:
            return facts
        return facts | {
            "from_retrieval": bool(self.from_retrieval[position]),
            "responsibility": round(float(self.responsibility[position]), 6),
            "p_model": float(self.p_model[position]),
            "layers": layers,
        }

    def _layer_facts(self, layer: int, position: int) -> dict:
        one = self.layers[layer]
        found = one.hits.found()[position]
        proposers = np.flatnonzero(one.hits.codes[position] == self.tokens[position])
        return {
            "layer": one.number,
            "weight": float(one.weight[position]),
            "p_retrieval": float(one.p_retrieval[position]),
            "neighbours": int(found.sum()),
            "nearest_distance": float(one.hits.distances[position, 0]),
            "nearest": self._where(one, position, 0),
            "proposed_by": [self._where(one, position, int(i)) for i in proposers[:LISTED]],
        }

    def _where(self, layer: TraceLayer, position: int, rank: int) -> dict:
        """Picture and place of a hit."""
        row, column = divmod(int(layer.hits.positions[position, rank]), self.grid.width)
        picture = layer.source.sources[int(layer.hits.sources[position, rank])]
        return {"source": picture.name, "row": row, "column": column}


def make_trace(
    grid: Grid, layers: Layers, canvas: Canvas, vocab: int, cost: Cost, complete: bool = True
) -> Trace:
    """The trace of a finished picture.

    Args:
        complete: Look up, all at once, the active positions that the drawing did not look up, or
            whose surroundings changed later. A picture filled in any order has changed around
            every token since it was drawn: what was asked then is all there is.
    """
    found = canvas.proposals
    if complete and layers:
        found = _all_proposals(layers, canvas)
    parts = tuple(
        _trace_layer(layer, {p: all_[j] for p, all_ in found.items()}, canvas, vocab)
        for j, layer in enumerate(layers.each)
    )
    return Trace(grid, canvas.tokens, canvas.component, canvas.p_model, parts, cost)


def _trace_layer(
    layer: Retriever, proposals: Mapping[int, Proposal | None], canvas: Canvas, vocab: int
) -> TraceLayer:
    size = canvas.size
    shape = (size, min(layer.neighbours, layer.source.size, KEPT))
    hits = Hits(
        np.full(shape, np.inf, np.float32), *(np.full(shape, -1, np.int64) for _ in range(3))
    )
    weight, shares, p_retrieval = np.zeros(size), np.zeros(shape), np.zeros(size)
    asked = {position: one for position, one in proposals.items() if one is not None}
    if asked:
        nearest = Hits.concat([one.hits.nearest(shape[1]) for one in asked.values()])
        for whole, rows in zip(hits.fields, nearest.fields, strict=True):
            whole[list(asked), : rows.shape[1]] = rows
    found = [position for position, one in asked.items() if one.found]
    for start in range(0, len(found), AT_ONCE):
        here = np.array(found[start : start + AT_ONCE])
        some = [asked[position] for position in here.tolist()]
        weight[here], p_retrieval[here], given = layer.facts(some, here, canvas.tokens[here], vocab)
        kept = given[:, : shape[1]]
        shares[here, : kept.shape[1]] = kept
    parts = (weight, hits, shares, p_retrieval, layer.number)
    return TraceLayer(layer.source, layer.options, *parts)


def _all_proposals(layers: Layers, canvas: Canvas) -> dict[int, Proposals]:
    """The proposals of all active positions that were drawn, as the finished tokens make them."""
    known = canvas.proposals
    active = [p for p in np.flatnonzero(~canvas.kept).tolist() if layers.looks_up(p)]
    missing = [
        p for p in active if p not in known or not layers.still_hold(known[p], canvas.asked(p), p)
    ]
    found = {p: known[p] for p in active if p in known}
    if missing:
        asked: Sequence[Asked] = [canvas.asked(p) for p in missing]
        found |= dict(zip(missing, layers.propose(asked), strict=True))
    return found
