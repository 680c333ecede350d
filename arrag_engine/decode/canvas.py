"""One picture while it is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..retrieval import Proposal
from .noise import SEEDS, Noise


@dataclass
class Canvas:
    """tokens[:decided] are final, tokens[decided:guessed] are guesses."""

    seed: int
    tokens: np.ndarray
    """[N] int64."""
    p_model: np.ndarray
    """[N] probability of each decided token under the model."""
    from_retrieval: np.ndarray
    """[N] whether the token was drawn from the retrieved patches alone."""
    decided: int = 0
    guessed: int = 0
    cached: int = 0
    """Positions whose input is in the key/value cache."""
    proposals: dict[int, Proposal] = field(default_factory=dict)
    """The last look-up of each position."""
    noise: dict[int, Noise] = field(default_factory=dict)
    """Of undecided positions, cached: generating it is expensive."""

    @property
    def size(self) -> int:
        return len(self.tokens)

    @property
    def done(self) -> bool:
        return self.cached == self.size

    def decide(self, token: int, from_retrieval: bool) -> None:
        """Make a token final at the first undecided position."""
        self.tokens[self.decided] = token
        self.from_retrieval[self.decided] = from_retrieval
        self.decided += 1
        self.guessed = max(self.guessed, self.decided)


def begin(seed: int, size: int, given: np.ndarray | None = None) -> Canvas:
    """A picture of `size` tokens, the first of which may be given."""
    tokens, done = np.zeros(size, np.int64), 0 if given is None else len(given)
    if given is not None:
        tokens[:done] = given
    return Canvas(
        seed % SEEDS, tokens, np.zeros(size), np.zeros(size, bool), decided=done, guessed=done
    )
