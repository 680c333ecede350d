"""From logits to the model's distribution: guidance, temperature, top-k, top-p."""

from __future__ import annotations

import torch
from torch import Tensor

from .settings import Sampling

ONE, HALF = 2**40, 2**20
"""The mass 1 as an integer, and its root."""


def guide(logits: Tensor, cfg: float | Tensor) -> Tensor:
    """Guided logits [B, ...] float32 of stacked streams [2B, ...]: conditional, unconditional.

    With B rows only (guidance 1) the conditional stream stands alone; a weight that is a tensor []
    always means two streams.
    """
    if not isinstance(cfg, Tensor) and cfg == 1:
        return logits.float()
    cond, uncond = logits.float().chunk(2)
    return uncond + cfg * (cond - uncond)


def truncate(probs: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep the top-k, then the top-p tokens of probs; renormalise. Ties go to the lower id."""
    k = top_k if 0 < top_k < probs.shape[-1] else None
    return keep_top(probs, k, torch.tensor(top_p) if top_p < 1 else None)


def model_distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """p_model [..., vocab] of guided logits: temperature, then top-k, then top-p."""
    temperature = sampling.temperature or 1.0
    probs = torch.softmax(logits.float() / temperature, dim=-1)
    return truncate(probs, sampling.top_k, sampling.top_p)


def shape_distribution(
    logits: Tensor, temperature: Tensor, top_k: Tensor | None, top_p: Tensor | None
) -> Tensor:
    """`model_distribution` with numbers that lie on the device, as a captured CUDA graph needs it.

    Args:
        temperature: 0-dim float32, above 0.
        top_k: 0-dim int64 from 1 on; None = off.
        top_p: 0-dim float32 above 0 and below 1; None = off.
    """
    return keep_top(torch.softmax(logits.float() / temperature, dim=-1), top_k, top_p)


def keep_top(probs: Tensor, top_k: Tensor | int | None, top_p: Tensor | None) -> Tensor:
    """The top-k, then the top-p tokens of probs [..., vocab], renormalised; None = off.

    Masses are whole multiples of 2^-40, so that equal probs give the same result on every device,
    whatever the order in which it adds. Nothing waits for the device.
    """
    if top_k is None and top_p is None:
        return probs
    ranked, order = probs.sort(dim=-1, descending=True, stable=True)
    mass, limit = to_mass(ranked), None if top_p is None else to_mass(top_p).clamp(min=1)
    kept = torch.ones_like(mass, dtype=torch.bool)
    if top_k is not None:
        kept = torch.arange(probs.shape[-1], device=probs.device) < top_k
        if limit is not None:
            limit = share(limit, mass.where(kept, 0).sum(dim=-1, keepdim=True))
    if limit is not None:
        kept = kept & (mass.cumsum(dim=-1) - mass < limit)
    total = mass.where(kept, 0).sum(dim=-1, keepdim=True).clamp(min=1)
    ranked = ranked.where(kept, 0.0) / (total.float() / ONE)
    return torch.zeros_like(probs).scatter(-1, order, ranked)


def to_mass(probs: Tensor) -> Tensor:
    """Probabilities as whole multiples of 2^-40, int64; exact from 2^-17 on."""
    return (probs.float() * ONE).round().long()


def share(part: Tensor, total: Tensor) -> Tensor:
    """part * total of two masses, rounded up: in halves, since the product does not fit 64 bits."""
    low = part * (total & (HALF - 1)) + (ONE - 1)
    return (part * (total >> 20) + (low >> 20)) >> 20
