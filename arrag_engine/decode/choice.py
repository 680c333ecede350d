"""Which component of the mixture a token comes from, and which token it is.

A mixture is drawn exactly by choosing the component first: retrieval where u_i < λ_i, else the
model; then a token of that component. A position of retrieval needs no pass of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..retrieval import Proposal, Retriever, mix
from ..settings import Sampling
from .canvas import Canvas
from .noise import Noise, draw, position_noise


@dataclass(frozen=True)
class Draft:
    """A guessed token, and what decides it once the tokens before it are known."""

    token: int
    noise: Noise | None
    from_retrieval: bool = False
    """Whether retrieval alone draws this position: then the guess is right if those before are."""
    proposal: Proposal | None = None
    """Mixed with the model's distribution where tokens are taken without noise."""


@dataclass(frozen=True)
class Chooser:
    """The rules of one drawing."""

    sampling: Sampling
    retriever: Retriever | None
    vocab: int
    width: int
    """Of the grid."""

    def retrieved(self, canvas: Canvas, position: int) -> int | None:
        """The token, if retrieval alone draws it: the model is not asked."""
        noise = self.noise(canvas, position)
        if noise is None:
            return None
        proposal = self.needed(canvas, position, noise.uniform)
        if proposal is None or noise.uniform >= self._retriever.weight(proposal):
            return None
        return draw(self._retriever.distribution(proposal, self.vocab), noise)

    def draft(self, canvas: Canvas, position: int, guess: bool) -> Draft:
        """A guess of the token at an undecided position of the window.

        Args:
            guess: Whether to make a first guess where there is none yet. A sequential pass uses
                none, and the look-up for it would be wasted.
        """
        noise = self.noise(canvas, position)
        token = self.retrieved(canvas, position)
        if token is not None:
            return Draft(token, noise, from_retrieval=True)
        proposal = self.needed(canvas, position, 0.0) if noise is None else None
        token = int(canvas.tokens[position])
        if guess and position >= canvas.guessed:
            token = self._guess(canvas, position, noise)
        return Draft(token, noise, proposal=proposal)

    def choose(self, draft: Draft, p_model: Tensor) -> int:
        """The token at a position with p_model [vocab], if everything before it was right."""
        if draft.from_retrieval:
            return draft.token
        if draft.proposal is not None:
            proposed = self._retriever.distribution(draft.proposal, self.vocab)
            p_model = mix(p_model, proposed, self._retriever.weight(draft.proposal))
        return draw(p_model, draft.noise)

    def noise(self, canvas: Canvas, position: int) -> Noise | None:
        if self.sampling.greedy:
            return None
        known = canvas.noise.get(position)
        if known is None:
            known = canvas.noise[position] = position_noise(canvas.seed, position, self.vocab)
        return known

    def needed(self, canvas: Canvas, position: int, uniform: float) -> Proposal | None:
        """The proposal at a position whose token may depend on it; None where it cannot."""
        retriever = self.retriever
        if retriever is None or not retriever.mixes(position):
            return None
        return None if uniform >= retriever.largest_weight else self.propose(canvas, position)

    def propose(self, canvas: Canvas, position: int) -> Proposal:
        """What the patches propose at an active position, given the tokens before it."""
        self.look_up(canvas, range(position, position + 1))
        return canvas.proposals[position]

    def look_up(self, canvas: Canvas, positions: range) -> None:
        """Have the proposals of these positions, as the tokens are now; one look-up for all."""
        retriever, known = self.retriever, canvas.proposals
        if retriever is None:
            return
        missing = [
            p
            for p in positions
            if retriever.looks_up(p)
            and not (p in known and retriever.still_holds(known[p], canvas.tokens, p))
        ]
        if missing:
            known.update(zip(missing, retriever.propose(canvas.tokens, missing), strict=True))

    def _guess(self, canvas: Canvas, position: int, noise: Noise | None) -> int:
        """What retrieval would draw, else the token above, else the one before."""
        if self.retriever is not None and self.retriever.looks_up(position):
            proposal = self.propose(canvas, position)
            if proposal.found:
                return draw(self.retriever.distribution(proposal, self.vocab), noise)
        above = position - self.width if position >= self.width else position - 1
        return int(canvas.tokens[above]) if above >= 0 else 0

    @property
    def _retriever(self) -> Retriever:
        """The retriever, where there is a proposal."""
        assert self.retriever is not None
        return self.retriever
