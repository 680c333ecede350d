"""Noise of each position, made from (seed, position) alone.

So a token depends neither on the batch nor on how many positions are computed at once. This is the
one definition; a device that makes the same noise itself has to return the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

SEEDS, WORD = 2**64, np.uint64


@dataclass(frozen=True)
class Noise:
    """The randomness of one position of a picture; each part is made when it is first used."""

    seed: int
    position: int
    vocab: int

    @cached_property
    def uniform(self) -> float:
        """Chooses the component of the mixture."""
        return float(_uniforms(self.seed, self.position, 1)[0])

    @cached_property
    def gumbel(self) -> Tensor:
        """[vocab] float32; the argmax of log p + gumbel is an exact draw from p."""
        values = -np.log(-np.log(_uniforms(self.seed, self.position, self.vocab + 1)[1:]))
        return torch.from_numpy(values.astype(np.float32))


def _uniforms(seed: int, position: int, count: int) -> np.ndarray:
    """Uniforms [count] float64 of counter-based Philox bits, exact, so never 0 or 1."""
    # Arrays, not integers, which numpy takes 12 us longer to read.
    key, counter = np.array([seed % SEEDS, 0], WORD), np.array([0, 0, 0, position], WORD)
    return to_uniform(np.random.Philox(key=key, counter=counter).random_raw(count))


def to_uniform(words: np.ndarray) -> np.ndarray:
    """float64 in (0, 1) of random words [n] uint64, exact."""
    return ((words >> WORD(12)) + 0.5) * 2.0**-52


def draw(probs: Tensor, noise: Noise | None) -> int:
    """A token drawn from probs [vocab]; the most probable one when there is no noise."""
    scores = probs if noise is None else probs.log() + noise.gumbel
    return int(scores.argmax())
