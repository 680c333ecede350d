"""Which component of the mixture a token comes from, and which token it is.

A mixture is drawn exactly by choosing the component first: retrieval where u_i < λ_i, else the
model; then a token of that component. A position of retrieval needs no pass of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from ..retrieval import Proposal, Retriever, mix
from ..settings import Sampling
from .canvas import Canvas
from .noise import Noise, draw

DraftRule = Literal["above", "left", "retrieved"]
"""A first guess: the token above, the token before, or what retrieval would draw (the token above
where nothing is retrieved). Later guesses are what the pass before made of the earlier ones. As
many are right by the first rule as by the others (docs/measurements.md), and it costs nothing."""


@dataclass(frozen=True)
class Draft:
    """A guessed token, and what decides it once the tokens before it are known."""

    token: int
    noise: Noise | None
    from_retrieval: bool = False
    """Whether retrieval alone draws this position: then the guess is right if those before are."""
    kept: bool = False
    """Whether the token stood before: then it is right whatever those before are."""
    proposal: Proposal | None = None
    """Mixed with the model's distribution where tokens are taken without noise."""

    @property
    def settled(self) -> bool:
        """Whether the token is known without the model."""
        return self.from_retrieval or self.kept


@dataclass(frozen=True)
class Chooser:
    """The rules of one drawing."""

    sampling: Sampling
    retriever: Retriever | None
    vocab: int
    width: int
    """Of the grid."""
    rule: DraftRule = "above"

    def find(
        self, places: Sequence[tuple[Canvas, int]], guess: bool = False
    ) -> list[Proposal | None]:
        """For each (picture, position) the proposal that its token may depend on, as the tokens are
        now; None where retrieval cannot matter. One look-up serves all of them.

        Args:
            guess: Whether first guesses are made there, which may depend on a proposal too.
        """
        wanted = [self._matters(canvas, position, guess) for canvas, position in places]
        self.look_up(place for place, needed in zip(places, wanted, strict=True) if needed)
        return [
            canvas.proposals[position] if needed else None
            for (canvas, position), needed in zip(places, wanted, strict=True)
        ]

    def _matters(self, canvas: Canvas, position: int, guess: bool) -> bool:
        """Whether what is found for a position can change its token, or its first guess."""
        retriever = self.retriever
        if retriever is None or canvas.kept[position] or not self._informed(canvas, position):
            return False
        if guess and self.rule == "retrieved" and position >= canvas.guessed:
            return retriever.looks_up(position)
        if not retriever.mixes(position):
            return False
        noise = self.noise(canvas, position)
        return noise is None or noise.uniform < retriever.largest_weight

    def look_up(self, places: Iterable[tuple[Canvas, int]]) -> None:
        """Have the proposals of positions of pictures, as the tokens are now, in one look-up."""
        retriever = self.retriever
        if retriever is None:
            return
        stale = [
            (canvas, position)
            for canvas, position in places
            if retriever.looks_up(position)
            and self._informed(canvas, position)
            and not self._holds(canvas, position)
        ]
        if stale:
            asked = [canvas.ask(position) for canvas, position in stale]
            for (canvas, position), proposal in zip(stale, retriever.propose(asked), strict=True):
                canvas.proposals[position] = proposal

    def retrieved(self, canvas: Canvas, position: int, proposal: Proposal | None) -> int | None:
        """The token, if retrieval alone draws it: the model is not asked."""
        noise = None if proposal is None else self.noise(canvas, position)
        if proposal is None or noise is None or noise.uniform >= self._retriever.weight(proposal):
            return None
        return draw(self._retriever.distribution(proposal, self.vocab), noise)

    def draft(self, canvas: Canvas, position: int, proposal: Proposal | None, guess: bool) -> Draft:
        """A guess of the token at an undecided position of the window.

        Args:
            proposal: As `find` returned it.
            guess: Whether to make a first guess where there is none yet. A sequential pass uses
                none.
        """
        if canvas.kept[position]:
            return Draft(int(canvas.tokens[position]), None, kept=True)
        noise = self.noise(canvas, position)
        token = self.retrieved(canvas, position, proposal)
        if token is not None:
            return Draft(token, noise, from_retrieval=True)
        token = int(canvas.tokens[position])
        if guess and position >= canvas.guessed:
            token = self._guess(canvas, position, proposal, noise)
        return Draft(token, noise, proposal=proposal if noise is None else None)

    def choose(self, draft: Draft, p_model: Tensor) -> int:
        """The token at a position with p_model [vocab], if everything before it was right."""
        if draft.settled:
            return draft.token
        if draft.proposal is not None:
            proposed = self._retriever.distribution(draft.proposal, self.vocab)
            p_model = mix(p_model, proposed, self._retriever.weight(draft.proposal))
        return draw(p_model, draft.noise)

    def proposed(self, draft: Draft) -> tuple[np.ndarray, np.ndarray, float]:
        """Codes [M], their p_retrieval [M] and λ of a draft's proposal."""
        assert draft.proposal is not None
        distribution = self._retriever.distribution(draft.proposal, self.vocab).numpy()
        codes = np.flatnonzero(distribution)
        return codes, distribution[codes], self._retriever.weight(draft.proposal)

    def noise(self, canvas: Canvas, position: int) -> Noise | None:
        if self.sampling.greedy:
            return None
        known = canvas.noise.get(position)
        if known is None:
            known = canvas.noise[position] = Noise(canvas.seed, position, self.vocab)
        return known

    def _holds(self, canvas: Canvas, position: int) -> bool:
        """Whether the position is looked up as the tokens are now."""
        proposal = canvas.proposals.get(position)
        return proposal is not None and self._retriever.still_holds(
            proposal, canvas.ask(position)
        )

    def _informed(self, canvas: Canvas, position: int) -> bool:
        """Whether the query of an active position knows anything. Without kept tokens it does."""
        return not canvas.edited or self._retriever.query.knows(canvas.ask(position))

    def _guess(
        self, canvas: Canvas, position: int, proposal: Proposal | None, noise: Noise | None
    ) -> int:
        """The first guess of a position by the rule."""
        if self.rule == "retrieved" and proposal is not None and proposal.found:
            return draw(self._retriever.distribution(proposal, self.vocab), noise)
        before = 1 if self.rule == "left" or position < self.width else self.width
        return int(canvas.tokens[position - before]) if position else 0

    @property
    def _retriever(self) -> Retriever:
        """The retriever, where there is a proposal."""
        assert self.retriever is not None
        return self.retriever
