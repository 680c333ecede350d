"""From logits to a token: guidance, temperature, top-k, top-p, and noise keyed by position.

Every position of every picture has noise of its own, made from (seed, position) when it is needed.
So a token depends neither on the batch nor on how many positions are worked out at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .settings import Sampling

SEEDS = 2**64


@dataclass(frozen=True)
class Noise:
    """The randomness of one position."""

    uniform: float
    """Chooses the mixture component."""
    gumbel: Tensor
    """[vocab] float32; the argmax of log p + gumbel is an exact draw from p."""


def position_noise(seed: int, position: int, vocab: int) -> Noise:
    """Noise of one position of the picture with this seed, from counter-based Philox bits."""
    raw = np.random.Philox(key=seed % SEEDS, counter=position << 192).random_raw(vocab + 1)
    uniform = ((raw >> np.uint64(12)) + 0.5) * 2.0**-52  # exact, so never 0 or 1
    gumbel = -np.log(-np.log(uniform[1:]))
    return Noise(float(uniform[0]), torch.from_numpy(gumbel.astype(np.float32)))


def guide(logits: Tensor, cfg: float) -> Tensor:
    """Guided logits [B, ...] float32 of stacked streams [2B, ...]: conditional, unconditional.

    With B rows only (guidance 1) the conditional stream stands alone.
    """
    if cfg == 1:
        return logits.float()
    cond, uncond = logits.float().chunk(2)
    return uncond + cfg * (cond - uncond)


def truncate(probs: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep the top-k, then the top-p tokens of probs; renormalise. Ties go to the lower id."""
    vocab = probs.shape[-1]
    if (top_k == 0 or top_k >= vocab) and top_p >= 1:
        return probs
    ranked, order = probs.sort(dim=-1, descending=True, stable=True)
    if 0 < top_k < vocab:
        ranked[..., top_k:] = 0
        ranked = ranked / ranked.sum(dim=-1, keepdim=True)
    if top_p < 1:
        mass_before = ranked.cumsum(dim=-1) - ranked
        ranked = ranked.masked_fill(mass_before >= top_p, 0)
        ranked = ranked / ranked.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probs).scatter(-1, order, ranked)


def model_distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """p_model [..., vocab] of guided logits: temperature, then top-k, then top-p."""
    temperature = sampling.temperature or 1.0
    probs = torch.softmax(logits.float() / temperature, dim=-1)
    return truncate(probs, sampling.top_k, sampling.top_p)


def draw(probs: Tensor, noise: Noise | None) -> int:
    """A token drawn from probs [vocab], or the most probable one when there is no noise."""
    scores = probs if noise is None else probs.log() + noise.gumbel
    return int(scores.argmax())
