"""The picture tokenizer of Show-o, MAGVIT-v2: pictures to a grid of codes and back.

A code is the signs of its vector: nothing is looked up. Encoder and decoder have widths and depths
of their own. Module names follow the official checkpoint keys.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops as default_ops
from ..vq_layers import AttnBlock, Downsample, ResBlock, Upsample, group_norm


@dataclass(frozen=True)
class VQConfig:
    """Sizes of the tokenizer; the defaults are Show-o's (16x down, 8192 codes)."""

    base_channels: int = 128
    """Of the encoder's first convolution."""
    encoder_widths: tuple[int, ...] = (128, 256, 256, 512, 512)
    """Channels of the encoder's levels, the one of full size first."""
    encoder_blocks: tuple[int, ...] = (4, 3, 4, 3, 4)
    """Residual blocks of the encoder's levels."""
    decoder_widths: tuple[int, ...] = (128, 128, 256, 256, 512)
    decoder_blocks: tuple[int, ...] = (4, 4, 3, 4, 3)
    bits: int = 13
    """Of a code."""

    @property
    def codebook_size(self) -> int:
        return 2**self.bits

    @property
    def codebook_dim(self) -> int:
        """Numbers of a code's vector."""
        return self.bits

    @property
    def patch_size(self) -> int:
        """Pixels along one side of the patch that a code stands for."""
        return 2 ** (len(self.encoder_widths) - 1)


def residual(in_channels: int, out_channels: int, count: int, ops: Any) -> nn.ModuleList:
    """`count` residual blocks, the first of which changes the width."""
    widths = [in_channels] + [out_channels] * count
    return nn.ModuleList(ResBlock(a, b, ops) for a, b in pairwise(widths))


def middle(channels: int, ops: Any) -> nn.Sequential:
    blocks = {
        "block_1": ResBlock(channels, channels, ops),
        "attn_1": AttnBlock(channels, ops),
        "block_2": ResBlock(channels, channels, ops),
    }
    return nn.Sequential(OrderedDict(blocks))


class Level(nn.Module):
    """Residual blocks at one resolution, then the step to the next resolution."""

    def __init__(self, block: nn.ModuleList) -> None:
        super().__init__()
        self.block = block
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return x if self.upsample is None else self.upsample(x)


class Encoder(nn.Module):
    def __init__(self, config: VQConfig, ops: Any) -> None:
        super().__init__()
        widths, bits = config.encoder_widths, config.bits
        self.conv_in = ops.Conv2d(3, config.base_channels, 3, padding=1)
        inputs = (config.base_channels, *widths)
        sizes = zip(inputs, widths, config.encoder_blocks, strict=False)
        self.down = nn.ModuleList(Level(residual(a, b, n, ops)) for a, b, n in sizes)
        for level, width in zip(self.down[:-1], widths, strict=False):
            level.downsample = Downsample(width, ops)
        self.mid = middle(widths[-1], ops)
        self.norm_out = group_norm(widths[-1], ops)
        self.conv_out = ops.Conv2d(widths[-1], bits, 3, padding=1)
        self.quant_conv = ops.Conv2d(bits, bits, 1)

    def forward(self, x: Tensor) -> Tensor:
        """What the signs are taken of [B, bits, h, w], of images [B, 3, H, W]."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class Decoder(nn.Module):
    def __init__(self, config: VQConfig, ops: Any) -> None:
        super().__init__()
        widths, bits = config.decoder_widths, config.bits
        self.post_quant_conv = ops.Conv2d(bits, bits, 1)
        self.conv_in = ops.Conv2d(bits, widths[-1], 3, padding=1)
        self.mid = middle(widths[-1], ops)
        inputs = (*widths[1:], widths[-1])  # each level follows the one below it
        sizes = zip(inputs, widths, config.decoder_blocks, strict=True)
        self.up = nn.ModuleList(Level(residual(a, b, n, ops)) for a, b, n in sizes)
        for level, width in zip(self.up[1:], widths[1:], strict=True):
            level.upsample = Upsample(width, ops)
        self.norm_out = group_norm(widths[0], ops)
        self.conv_out = ops.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, vectors: Tensor) -> Tensor:
        """Images [B, 3, H, W] of code vectors [B, bits, h, w]."""
        x = self.mid(self.conv_in(self.post_quant_conv(vectors)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VQModel(nn.Module):
    """Encoder and decoder of Show-o's picture tokenizer."""

    def __init__(self, config: VQConfig, ops: Any = default_ops) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, ops)
        self.decoder = Decoder(config, ops)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [B, h, w] (int64) and their vectors [B, h, w, bits] of images [B, 3, H, W] in
        [-1, 1], H and W multiples of the patch size."""
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # else other codes
            bits = self.encoder(images).permute(0, 2, 3, 1) > 0
        codes = (bits.long() << _places(self.config.bits, bits.device)).sum(dim=-1)
        return codes, signs(bits)

    def vectors(self, codes: Tensor) -> Tensor:
        """Code vectors [..., bits] of codes [...]: 1 where the bit is set, else -1. The first
        number is the most significant bit."""
        return code_vectors(codes, self.config.bits)

    def decode(self, codes: Tensor) -> Tensor:
        """Images [B, 3, h*p, w*p] (about [-1, 1], not clipped) of codes [B, h, w]."""
        return self.decoder(self.vectors(codes).permute(0, 3, 1, 2))

    def codebook(self, device: torch.device) -> np.ndarray:
        """All code vectors [codes, bits] float32. Two are apart by four times the number of bits in
        which their codes differ, squared."""
        return self.vectors(torch.arange(self.config.codebook_size)).numpy()


def code_vectors(codes: Tensor, bits: int) -> Tensor:
    """Vectors [..., bits] of codes [...]; see `VQModel.vectors`."""
    return signs(codes[..., None] >> _places(bits, codes.device) & 1)


def _places(bits: int, device: torch.device) -> Tensor:
    """How far to shift a code for each of its bits [bits]."""
    return torch.arange(bits - 1, -1, -1, device=device)


def signs(bits: Tensor) -> Tensor:
    """1 for a set bit, -1 for others, float32."""
    return bits.float() * 2 - 1
