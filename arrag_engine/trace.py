"""What retrieval did while a picture was drawn, position by position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .daid import Proposal, Retrieval, RetrievalOptions
from .grid import Grid
from .index import Neighbors, PatchIndex

KEPT = 256
"""Neighbours a trace keeps of each position, the nearest ones: K may be all of an index."""


@dataclass(frozen=True)
class Trace:
    """Facts of one picture; every array is indexed by position."""

    grid: Grid
    index: PatchIndex
    options: RetrievalOptions
    tokens: np.ndarray
    """[N] codes drawn."""
    weight: np.ndarray
    """[N] λ_i; 0 where retrieval did not run or found nothing."""
    from_retrieval: np.ndarray
    """[N] True where the token was drawn from the retrieved patches alone."""
    neighbors: Neighbors
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
        found = self.neighbors.found()[position]
        if not found.any():
            return facts
        distances = self.neighbors.distances[position][found]
        proposers = self.neighbors.codes[position] == self.tokens[position]
        return facts | {
            "from_retrieval": bool(self.from_retrieval[position]),
            "responsibility": round(float(self.responsibility[position]), 6),
            "p_model": float(self.p_model[position]),
            "p_retrieval": float(self.p_retrieval[position]),
            "neighbours": int(found.sum()),
            "nearest_distance": float(distances[0]),
            "nearest": self._where(self.neighbors.ids[position, 0]),
            "proposed_by": [self._where(i) for i in self.neighbors.ids[position][proposers][:8]],
        }

    def _where(self, patch: int) -> dict:
        source, position = self.index.locate(np.asarray(patch))
        row, column = divmod(int(position), self.grid.width)
        return {"source": self.index.sources[int(source)].name, "row": row, "column": column}


def make_trace(
    grid: Grid,
    retrieval: Retrieval,
    proposals: dict[int, Proposal],
    tokens: np.ndarray,
    from_retrieval: np.ndarray,
    p_model: np.ndarray,
    vocab: int,
) -> Trace:
    """The trace of finished tokens [N].

    Args:
        proposals: What was looked up while drawing, by position; used up. The other active
            positions are looked up now, all at once.
    """
    retriever = retrieval.retriever
    active = [p for p in range(grid.size) if retrieval.looks_up(p)]
    asked = {p: q for p in active if (q := proposals.pop(p, None)) is not None}
    asked = {p: q for p, q in asked.items() if retrieval.still_holds(q, tokens, p)}
    missing = [p for p in active if p not in asked]
    if missing:
        asked |= dict(zip(missing, retrieval.propose(tokens, missing), strict=True))
    shape = (grid.size, min(retrieval.neighbours, retriever.index.size, KEPT))
    distances = np.full(shape, np.inf, np.float32)
    codes, ids = np.full(shape, -1), np.full(shape, -1)
    weight, p_retrieval = np.zeros(grid.size), np.zeros(grid.size)
    for position, proposal in asked.items():
        distances[position] = proposal.neighbors.distances[0, :KEPT]
        codes[position] = proposal.neighbors.codes[0, :KEPT]
        ids[position] = proposal.neighbors.ids[0, :KEPT]
        if proposal.found:
            weight[position] = retrieval.weight(proposal)
            p_retrieval[position] = retrieval.distribution(proposal, vocab)[tokens[position]]
    return Trace(
        grid,
        retriever.index,
        retrieval.options,
        tokens,
        weight,
        from_retrieval,
        Neighbors(distances, codes, ids),
        p_model,
        p_retrieval,
    )
