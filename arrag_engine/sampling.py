"""From logits to the model's distribution: guidance, temperature, top-k, top-p."""

from __future__ import annotations

import torch
from torch import Tensor

from .settings import Sampling


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
