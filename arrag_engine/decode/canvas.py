"""One picture while it is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..retrieval import Asked, Proposals
from .noise import SEEDS, Noise

MODEL = -1
"""The component of a token that the model drew; a layer's is its number."""


@dataclass
class Canvas:
    """tokens[:decided] are final, tokens[decided:guessed] are guesses."""

    seed: int
    tokens: np.ndarray
    """[N] int64."""
    p_model: np.ndarray
    """[N] probability of each decided token under the model."""
    component: np.ndarray
    """[N] what drew the token: a layer alone (its number), or `MODEL`, which also stands for the
    mixture where tokens are taken without noise."""
    decided: int = 0
    guessed: int = 0
    cached: int = 0
    """Positions whose input is in the key/value cache."""
    proposals: dict[int, Proposals] = field(default_factory=dict)
    """The last look-up of each position."""
    noise: dict[int, Noise] = field(default_factory=dict)
    """Of undecided positions, cached: generating it is expensive."""

    @property
    def size(self) -> int:
        return len(self.tokens)

    @property
    def done(self) -> bool:
        return self.cached == self.size

    @property
    def so_far(self) -> np.ndarray:
        """Tokens [N], -1 where they are not final."""
        tokens = self.tokens.copy()
        tokens[self.decided :] = -1
        return tokens

    def asked(self, position: int) -> Asked:
        """What a query for one position is made of."""
        return Asked(self.tokens, np.array([position]))

    def decide(self, token: int, component: int) -> None:
        """Make a token final at the first undecided position."""
        self.tokens[self.decided] = token
        self.component[self.decided] = component
        self.decided += 1
        self.guessed = max(self.guessed, self.decided)


def begin(seed: int, size: int, given: np.ndarray | None = None) -> Canvas:
    """A picture of `size` tokens, the first of which may be given."""
    tokens, done = np.zeros(size, np.int64), 0 if given is None else len(given)
    if given is not None:
        tokens[:done] = given
    drawn_by = np.full(size, MODEL)
    return Canvas(seed % SEEDS, tokens, np.zeros(size), drawn_by, decided=done, guessed=done)
