"""Which component of the mixture a token comes from, and which token it is.

A mixture is drawn exactly by choosing the component first (`retrieval.Layers`), then a token of it.
A position of retrieval needs no pass of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from ..retrieval import Layers, Proposals, mix
from ..settings import Sampling
from .canvas import MODEL, STOOD, Canvas
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
    component: int = MODEL
    """What alone decides this position: a layer, if the guesses before are right, or `STOOD`."""
    proposals: Proposals | None = None
    """Mixed with the model's distribution where tokens are taken without noise."""

    @property
    def certain(self) -> bool:
        """Whether the token needs no pass of the model."""
        return self.component != MODEL


@dataclass(frozen=True)
class Chooser:
    """The rules of one drawing."""

    sampling: Sampling
    layers: Layers
    vocab: int
    width: int
    """Of the grid."""
    rule: DraftRule = "above"

    def find(
        self, places: Sequence[tuple[Canvas, int]], guess: bool = False
    ) -> list[Proposals | None]:
        """For each (picture, position) the proposals that its token may depend on, as the tokens
        are now; None where retrieval cannot matter. One look-up serves all of them.

        Args:
            guess: Whether first guesses are made there, which may depend on proposals too.
        """
        if not self.layers:
            return [None] * len(places)
        wanted = [self._matters(canvas, position, guess) for canvas, position in places]
        if not any(wanted):  # most places, most of the time
            return [None] * len(places)
        self.look_up(place for place, needed in zip(places, wanted, strict=True) if needed)
        return [
            canvas.proposals[position] if needed else None
            for (canvas, position), needed in zip(places, wanted, strict=True)
        ]

    def _matters(self, canvas: Canvas, position: int, guess: bool) -> bool:
        """Whether what is found for a position can change its token, or its first guess."""
        layers = self.layers
        if canvas.kept[position]:
            return False
        if guess and self.rule == "retrieved" and position >= canvas.guessed:
            return layers.looks_up(position)
        if not layers.mixes(position):
            return False
        noise = self.noise(canvas, position)
        return noise is None or noise.uniform < layers.largest_weights[position]

    def look_up(self, places: Iterable[tuple[Canvas, int]]) -> None:
        """Have the proposals of positions of pictures, as the tokens are now, in one look-up."""
        stale = [
            (canvas, position)
            for canvas, position in places
            if self.layers.looks_up(position) and not self._holds(canvas, position)
        ]
        if stale:
            found = self.layers.propose([canvas.asked(position) for canvas, position in stale])
            for (canvas, position), proposals in zip(stale, found, strict=True):
                canvas.proposals[position] = proposals

    def retrieved(
        self, canvas: Canvas, position: int, proposals: Proposals | None
    ) -> tuple[int, int] | None:
        """(token, layer), if a layer alone draws it: the model is not asked."""
        noise = None if proposals is None else self.noise(canvas, position)
        if proposals is None or noise is None:
            return None
        layer = self.layers.component(proposals, position, noise.uniform)
        if layer is None:
            return None
        return draw(self.layers.distribution(proposals, layer, self.vocab), noise), layer

    def draft(
        self, canvas: Canvas, position: int, proposals: Proposals | None, guess: bool
    ) -> Draft:
        """A guess of the token at an undecided position of the window.

        Args:
            proposals: As `find` returned them.
            guess: Whether to make a first guess where there is none yet. A sequential pass uses
                none.
        """
        if canvas.kept[position]:
            return Draft(int(canvas.tokens[position]), None, STOOD)
        noise = self.noise(canvas, position)
        retrieved = self.retrieved(canvas, position, proposals)
        if retrieved is not None:
            token, layer = retrieved
            return Draft(token, noise, layer)
        token = int(canvas.tokens[position])
        if guess and position >= canvas.guessed:
            token = self._guess(canvas, position, proposals, noise)
        return Draft(token, noise, proposals=proposals if noise is None else None)

    def choose(self, draft: Draft, position: int, p_model: Tensor) -> int:
        """The token at a position with p_model [vocab], if everything before it was right."""
        if draft.certain:
            return draft.token
        if draft.proposals is not None:
            weight, proposed = self.layers.mixture(draft.proposals, position, self.vocab)
            p_model = mix(p_model, proposed, weight)
        return draw(p_model, draft.noise)

    def proposed(self, draft: Draft, position: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Codes [M], their p_retrieval [M] and Σ λ of a draft's proposals."""
        assert draft.proposals is not None
        weight, mixture = self.layers.mixture(draft.proposals, position, self.vocab)
        distribution = mixture.numpy()
        codes = np.flatnonzero(distribution)
        return codes, distribution[codes], weight

    def noise(self, canvas: Canvas, position: int) -> Noise | None:
        known = canvas.noise.get(position)
        if known is None and not self.sampling.greedy:
            known = canvas.noise[position] = Noise(canvas.seed, position, self.vocab)
        return known

    def _holds(self, canvas: Canvas, position: int) -> bool:
        """Whether the position is looked up as the tokens are now."""
        proposals = canvas.proposals.get(position)
        return proposals is not None and self.layers.still_hold(
            proposals, canvas.asked(position), position
        )

    def _guess(
        self, canvas: Canvas, position: int, proposals: Proposals | None, noise: Noise | None
    ) -> int:
        """The first guess of a position by the rule."""
        if self.rule == "retrieved" and proposals is not None:
            weight, mixture = self.layers.mixture(proposals, position, self.vocab)
            if weight:
                return draw(mixture, noise)
        before = 1 if self.rule == "left" or position < self.width else self.width
        return int(canvas.tokens[position - before]) if position else 0
