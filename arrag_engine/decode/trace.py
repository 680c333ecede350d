"""What retrieval did while a picture was drawn, position by position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..grid import Grid
from ..index import Hits
from ..retrieval import PatchSource, Proposal, Retriever
from ..settings import RetrievalOptions
from .canvas import Canvas

KEPT = 256
"""Neighbours a trace keeps of each position, the nearest ones: K may be all of an index."""


@dataclass(frozen=True)
class Trace:
    """Facts of one picture; every array is indexed by position."""

    grid: Grid
    source: PatchSource
    options: RetrievalOptions
    tokens: np.ndarray
    """[N] codes drawn."""
    weight: np.ndarray
    """[N] λ_i; 0 where retrieval did not run or found nothing."""
    from_retrieval: np.ndarray
    """[N] True where the token was drawn from the retrieved patches alone."""
    hits: Hits
    """[N, min(K, KEPT)]; nothing found where retrieval did not run."""
    p_model: np.ndarray
    """[N] probability of the drawn token under the model."""
    p_retrieval: np.ndarray
    """[N] probability of the drawn token under the retrieved patches."""

    @property
    def responsibility(self) -> np.ndarray:
        """r_i = λ p_retrieval(x_i) / p(x_i) [N]: how much of the token is owed to retrieval."""
        retrieved = self.weight * self.p_retrieval
        mixed = (1 - self.weight) * self.p_model + retrieved
        return np.divide(retrieved, mixed, out=np.zeros_like(mixed), where=mixed > 0)

    def position_facts(self, position: int) -> dict:
        """The facts of one position as plain values."""
        row, column = divmod(position, self.grid.width)
        facts = {
            "row": row,
            "column": column,
            "token": int(self.tokens[position]),
            "weight": float(self.weight[position]),
        }
        found = self.hits.found()[position]
        if not found.any():
            return facts
        distances = self.hits.distances[position][found]
        proposers = self.hits.codes[position] == self.tokens[position]
        return facts | {
            "from_retrieval": bool(self.from_retrieval[position]),
            "responsibility": round(float(self.responsibility[position]), 6),
            "p_model": float(self.p_model[position]),
            "p_retrieval": float(self.p_retrieval[position]),
            "neighbours": int(found.sum()),
            "nearest_distance": float(distances[0]),
            "nearest": self._where(position, 0),
            "proposed_by": [self._where(position, i) for i in np.flatnonzero(proposers)[:8]],
        }

    def _where(self, position: int, rank: int) -> dict:
        """Picture and place of a hit."""
        row, column = divmod(int(self.hits.positions[position, rank]), self.grid.width)
        picture = self.source.sources[int(self.hits.sources[position, rank])]
        return {"source": picture.name, "row": row, "column": column}


def make_trace(
    grid: Grid, retriever: Retriever, canvas: Canvas, vocab: int, complete: bool = True
) -> Trace:
    """The trace of a finished picture.

    Args:
        complete: Look up, all at once, the active positions that the drawing did not look up, or
            whose surroundings changed later. A picture filled in any order has changed around
            every token since it was drawn: what was asked then is all there is.
    """
    proposals = _proposals(retriever, canvas) if complete else canvas.proposals
    shape = (grid.size, min(retriever.neighbours, retriever.source.size, KEPT))
    hits = Hits(
        np.full(shape, np.inf, np.float32), *(np.full(shape, -1, np.int64) for _ in range(3))
    )
    weight, p_retrieval = np.zeros(grid.size), np.zeros(grid.size)
    for position, proposal in proposals.items():
        for whole, row in zip(hits.fields, proposal.hits.nearest(KEPT).fields, strict=True):
            whole[position] = row[0]
        if proposal.found:
            weight[position] = retriever.weight(proposal)
            p_retrieval[position] = retriever.distribution(proposal, vocab)[canvas.tokens[position]]
    return Trace(
        grid,
        retriever.source,
        retriever.options,
        canvas.tokens,
        weight,
        canvas.from_retrieval,
        hits,
        canvas.p_model,
        p_retrieval,
    )


def _proposals(retriever: Retriever, canvas: Canvas) -> dict[int, Proposal]:
    """The proposals of all active positions that were drawn, as the finished tokens make them."""
    known = canvas.proposals
    asked = {p: canvas.ask(p) for p in np.flatnonzero(~canvas.kept) if retriever.looks_up(p)}
    if canvas.edited:
        asked = {p: one for p, one in asked.items() if retriever.query.knows(one)}
    missing = [
        p
        for p, one in asked.items()
        if p not in known or not retriever.still_holds(known[p], one)
    ]
    found = {p: known[p] for p in asked if p in known}
    if missing:
        proposals = retriever.propose([asked[p] for p in missing])
        found |= dict(zip(missing, proposals, strict=True))
    return found
