"""The VQ tokenizer of Janus-Pro: pictures to a grid of codes and back.

Module names follow the official checkpoint keys, so a state dict loads without renaming.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops as default_ops
from ..vq_layers import AttnBlock, Downsample, ResBlock, Upsample, group_norm


@dataclass(frozen=True)
class VQConfig:
    """Sizes of the tokenizer; the defaults are Janus-Pro's (16x down, 16384 codes)."""

    base_channels: int = 128
    channel_multiplier: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 256
    codebook_size: int = 16384
    codebook_dim: int = 8
    decoder_widths: tuple[int, ...] = ()
    """Channels of the decoder's levels, the one of full size first; () becomes the encoder's."""
    decoder_blocks: int = 0
    """Residual blocks of a decoder's level; 0 becomes one more than an encoder's."""
    decoder_z_channels: int = 0
    """Channels that the decoder takes; 0 becomes those that the encoder puts out."""

    def __post_init__(self) -> None:
        derived = {
            "decoder_widths": self.encoder_widths,
            "decoder_blocks": self.num_res_blocks + 1,
            "decoder_z_channels": self.z_channels,
        }
        for name, value in derived.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels of the encoder's levels, the one of full size first."""
        return tuple(self.base_channels * m for m in self.channel_multiplier)

    @property
    def patch_size(self) -> int:
        """Pixels along one side of the patch that a code stands for."""
        return 2 ** (len(self.channel_multiplier) - 1)


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention at the lowest resolution, then
    the step to the next resolution."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, attn: bool, ops: Any):
        super().__init__()
        sizes = [in_channels] + [out_channels] * blocks
        self.res = nn.ModuleList(ResBlock(a, out_channels, ops) for a in sizes[:-1])
        self.attn = nn.ModuleList(
            AttnBlock(out_channels, ops) for _ in range(blocks if attn else 0)
        )
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x: Tensor) -> Tensor:
        for i, res in enumerate(self.res):
            x = res(x)
            if self.attn:
                x = self.attn[i](x)
        if self.downsample is not None:
            x = self.downsample(x)
        return x if self.upsample is None else self.upsample(x)


def middle(channels: int, ops: Any) -> nn.Sequential:
    return nn.Sequential(
        ResBlock(channels, channels, ops),
        AttnBlock(channels, ops),
        ResBlock(channels, channels, ops),
    )


class Encoder(nn.Module):
    def __init__(self, config: VQConfig, ops: Any) -> None:
        super().__init__()
        widths = config.encoder_widths
        last = len(widths) - 1
        self.conv_in = ops.Conv2d(3, config.base_channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for i, (a, b) in enumerate(zip([config.base_channels, *widths], widths, strict=False)):
            level = Level(a, b, config.num_res_blocks, i == last, ops)
            if i < last:
                level.downsample = Downsample(b, ops)
            self.conv_blocks.append(level)
        self.mid = middle(widths[-1], ops)
        self.norm_out = group_norm(widths[-1], ops)
        self.conv_out = ops.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.conv_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: VQConfig, ops: Any) -> None:
        super().__init__()
        widths = config.decoder_widths[::-1]
        last = len(widths) - 1
        self.conv_in = ops.Conv2d(config.decoder_z_channels, widths[0], 3, padding=1)
        self.mid = middle(widths[0], ops)
        self.conv_blocks = nn.ModuleList()
        for i, (a, b) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            level = Level(a, b, config.decoder_blocks, i == 0, ops)
            if i < last:
                level.upsample = Upsample(b, ops)
            self.conv_blocks.append(level)
        self.norm_out = group_norm(widths[-1], ops)
        self.conv_out = ops.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in self.conv_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Codebook(nn.Module):
    """The code vectors. Stored rows need not be unit length; they are normalised at every use."""

    def __init__(self, size: int, dim: int, ops: Any) -> None:
        super().__init__()
        self.embedding = ops.Embedding(size, dim)

    def forward(self, codes: Tensor) -> Tensor:
        """Unit-length code vectors [..., dim] of codes [...]."""
        return F.normalize(self.embedding(codes), dim=-1)

    def rows(self, device: torch.device) -> Tensor:
        """All unit-length code vectors [codes, dim]."""
        return self(torch.arange(self.embedding.num_embeddings, device=device))


class VQModel(nn.Module):
    """Encoder, codebook and decoder of Janus-Pro's picture tokenizer."""

    def __init__(self, config: VQConfig, ops: Any = default_ops) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, ops)
        self.decoder = Decoder(config, ops)
        self.quantize = Codebook(config.codebook_size, config.codebook_dim, ops)
        self.quant_conv = ops.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.post_quant_conv = ops.Conv2d(config.codebook_dim, config.decoder_z_channels, 1)

    def features(self, images: Tensor) -> Tensor:
        """Continuous patch vectors before quantising, unit length.

        Args:
            images: [B, 3, H, W] in [-1, 1], H and W multiples of the patch size.

        Returns:
            [B, H/p, W/p, dim] unit vectors.
        """
        z = self.quant_conv(self.encoder(images))
        return F.normalize(z.permute(0, 2, 3, 1), dim=-1)

    def nearest(self, vectors: Tensor) -> Tensor:
        """Codes [...] of the unit vectors [..., dim]: nearest codebook row by squared L2.

        On the unit sphere |a - b|^2 = 2 - 2ab, so the largest inner product is the nearest row.
        """
        return (vectors @ self.quantize.rows(vectors.device).T).argmax(dim=-1)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [B, h, w] (int64) and unit vectors [B, h, w, dim] of images [B, 3, H, W]."""
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # else other codes
            vectors = self.features(images)
        return self.nearest(vectors), vectors

    def codebook(self, device: torch.device) -> np.ndarray:
        """Unit-length code vectors [codes, dim] float32, worked out on `device`."""
        return self.quantize.rows(device).detach().cpu().numpy()

    def decode(self, codes: Tensor) -> Tensor:
        """Images [B, 3, h*p, w*p] (about [-1, 1], not clipped) of codes [B, h, w]."""
        return self.decoder(self.post_quant_conv(self.quantize(codes).permute(0, 3, 1, 2)))
