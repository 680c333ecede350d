"""Pixels as people see them."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Pixels [B, H, W, 3] uint8 of images [B, 3, H, W] in [-1, 1]; truncated, not rounded."""
    return ((images.float() + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
