"""The convolutional layers that the picture tokenizers of Janus-Pro and Show-o consist of."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def group_norm(channels: int, ops: Any) -> nn.Module:
    return ops.GroupNorm(32, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Pre-activation residual block: twice (group norm, swish, 3x3 convolution)."""

    def __init__(self, in_channels: int, out_channels: int, ops: Any) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, ops)
        self.conv1 = ops.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, ops)
        self.conv2 = ops.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = None
        if in_channels != out_channels:
            self.nin_shortcut = ops.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of the feature map."""

    def __init__(self, channels: int, ops: Any) -> None:
        super().__init__()
        self.norm = group_norm(channels, ops)
        self.q = ops.Conv2d(channels, channels, 1)
        self.k = ops.Conv2d(channels, channels, 1)
        self.v = ops.Conv2d(channels, channels, 1)
        self.proj_out = ops.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (
            rearrange(conv(normed), "b c h w -> b 1 (h w) c") for conv in (self.q, self.k, self.v)
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(out, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Stride-2 convolution, padded by one zero row at the bottom and one column at the right."""

    def __init__(self, channels: int, ops: Any) -> None:
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int, ops: Any) -> None:
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
