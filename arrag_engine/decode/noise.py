"""Noise of each position, made from (seed, position) alone.

So a token depends neither on the batch nor on how many positions are computed at once. This is the
one definition; a device that makes the same noise itself has to return the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SEEDS, WORD = 2**64, np.uint64


@dataclass(frozen=True)
class Noise:
    """The randomness of one position."""

    uniform: float
    """Chooses the component of the mixture."""
    gumbel: Tensor
    """[vocab] float32; the argmax of log p + gumbel is an exact draw from p."""


def position_noise(seed: int, position: int, vocab: int) -> Noise:
    """Noise of one position of the picture with this seed, from counter-based Philox bits."""
    # Arrays, not integers, which numpy takes 12 us longer to read.
    key, counter = np.array([seed % SEEDS, 0], WORD), np.array([0, 0, 0, position], WORD)
    raw = np.random.Philox(key=key, counter=counter).random_raw(vocab + 1)
    uniform = ((raw >> WORD(12)) + 0.5) * 2.0**-52  # exact, so never 0 or 1
    gumbel = -np.log(-np.log(uniform[1:]))
    return Noise(float(uniform[0]), torch.from_numpy(gumbel.astype(np.float32)))


def draw(probs: Tensor, noise: Noise | None) -> int:
    """A token drawn from probs [vocab]; the most probable one when there is no noise."""
    scores = probs if noise is None else probs.log() + noise.gumbel
    return int(scores.argmax())
