"""One picture while it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..retrieval import Asked, FoundByLayers, Proposals
from .kept import Kept
from .noise import SEEDS, Noise

MODEL = -1
"""The component of a token that the model drew; a layer's is its number."""
STOOD = -2
"""The component of a kept token, which nothing drew."""


@dataclass
class Canvas:
    """tokens[:decided] are final, tokens[decided:guessed] are guesses; kept ones always stand."""

    seed: int
    tokens: np.ndarray
    """[N] int64."""
    kept: np.ndarray
    """Mask [N] of the tokens that stood before the drawing began."""
    p_model: np.ndarray
    """[N] probability of each drawn token under the model; 0 of kept ones."""
    component: np.ndarray
    """[N] what drew the token: a layer alone (its number), `MODEL`, which also stands for the
    mixture where tokens are taken without noise, or `STOOD`."""
    decided: int = 0
    guessed: int = 0
    cached: int = 0
    """Positions whose input is in the key/value cache."""
    proposals: dict[int, Proposals] = field(default_factory=dict)
    """The last look-up of each position."""
    found: dict[int, tuple[FoundByLayers, int]] = field(default_factory=dict)
    """In a drawing in any order, where in a look-up of many positions the last one of each is; see
    `recall`."""
    noise: dict[int, Noise] = field(default_factory=dict)
    """Of undecided positions, cached: generating it is expensive."""

    def recall(self) -> None:
        """Make `proposals` of `found`: an object for each position, once a picture."""
        for position, (found, i) in self.found.items():
            self.proposals[position] = found.at(i)
        self.found.clear()

    @property
    def size(self) -> int:
        return len(self.tokens)

    @property
    def done(self) -> bool:
        """Whether all is known of every drawn token. Kept ones after the last of them need no pass
        of the model."""
        return self.cached >= self.end

    @cached_property
    def end(self) -> int:
        """The position after the last one to draw."""
        drawn = np.flatnonzero(~self.kept)
        return int(drawn[-1]) + 1 if len(drawn) else 0

    @cached_property
    def edited(self) -> bool:
        """Whether any token is kept."""
        return bool(self.kept.any())

    @property
    def so_far(self) -> np.ndarray:
        """Tokens [N], -1 where they are not final."""
        stand = self.kept | (np.arange(self.size) < self.decided)
        return np.where(stand, self.tokens, -1)

    def asked(self, position: int) -> Asked:
        """What a query for one position is made of, in raster order: the tokens before it, and kept
        ones wherever they are. Position 0 has none: it belongs to the prompt's pass, which all
        pictures share."""
        known = None
        if self.edited:
            known = self.kept & (position > 0)
            known[:position] = True
        return Asked(self.tokens, np.array([position]), known)

    def decide(self, token: int, component: int) -> None:
        """Make a token final at the first undecided position, and with it the kept ones after
        it."""
        self.tokens[self.decided] = token
        self.component[self.decided] = component
        self.decided += 1
        self.stand()

    def stand(self) -> None:
        """Pass over kept tokens."""
        while self.decided < self.size and self.kept[self.decided]:
            self.decided += 1
        self.guessed = max(self.guessed, self.decided)


def begin(seed: int, size: int, kept: Kept | None = None) -> Canvas:
    """A picture of `size` tokens.

    Args:
        kept: Of this picture. Its other tokens play no part.
    """
    tokens, mask = np.zeros(size, np.int64), np.zeros(size, bool)
    if kept is not None:
        tokens[...], mask[...] = kept.tokens[0], kept.mask[0]
    canvas = Canvas(seed % SEEDS, tokens, mask, np.zeros(size), np.where(mask, STOOD, MODEL))
    canvas.stand()
    return canvas


def begin_all(seeds: Sequence[int], size: int, kept: Kept | None = None) -> list[Canvas]:
    """A picture for each seed."""
    return [begin(seed, size, None if kept is None else kept.of(i)) for i, seed in enumerate(seeds)]
