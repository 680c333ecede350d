"""Noise of a picture that is filled in any order: two uniforms for each step and position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..sampling import to_mass
from .noise import SEEDS, to_uniform


@dataclass(frozen=True)
class StepNoise:
    """The randomness of one step of a picture that is filled in any order."""

    draw: np.ndarray
    """Uniforms [N] that choose the tokens."""
    keep: np.ndarray
    """Uniforms [N] that choose, with the confidence, which of them stay."""


def step_noise(seed: int, step: int, size: int) -> StepNoise:
    """Noise of one step; its counters lie apart from those of `Noise`."""
    generator = np.random.Philox(key=seed % SEEDS, counter=(step + 1) << 128)
    uniforms = to_uniform(generator.random_raw(2 * size))
    return StepNoise(uniforms[0::2], uniforms[1::2])


def draw_by_sum(p: Tensor, uniforms: np.ndarray) -> np.ndarray:
    """Tokens [N] drawn from p [N, vocab]: how many entries of the running sum are at most u.

    Sums of whole masses do not depend on their order, so every device draws the same token.
    """
    sums = to_mass(p).cumsum(dim=-1)
    limits = torch.from_numpy(uniforms) * sums[:, -1].cpu().double()  # which not every GPU has
    drawn = (sums <= limits.floor().long().to(p.device)[:, None]).sum(dim=-1)
    return drawn.clamp(max=p.shape[-1] - 1).cpu().numpy()
