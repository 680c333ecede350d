"""A model in less memory: weights of 8 bits, and parts that stay on the CPU."""

from __future__ import annotations

from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ops import Embedding, linear

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The largest number that each storage holds."""
SLICE = 2**24
"""Weights that are copied in another precision at once."""
HEADROOM = 2.0**-8
"""Factor of the inputs of a product in float16: the stored numbers are up to 448, and sums of such
products would leave its range."""


def pack(weight: Tensor, storage: torch.dtype) -> tuple[Tensor, Tensor]:
    """A weight [out, in] as numbers of `storage` and their scale [out] float32: the weight is about
    numbers * scale.

    Symmetric, one scale per output. Scales have bfloat16's precision, for a product that takes them
    so.
    """
    parts = weight.split(max(1, SLICE // weight.shape[1]))  # a layer in float32 may be 180 MB
    packed, scales = zip(*(_pack_rows(part.float(), storage) for part in parts), strict=True)
    return torch.cat(packed), torch.cat(scales)


def _pack_rows(weight: Tensor, storage: torch.dtype) -> tuple[Tensor, Tensor]:
    # 2**-8 is what rounding may take away from a scale; no number may exceed the largest.
    scale = weight.abs().amax(dim=1) * (1 + 2**-8) / LARGEST[storage]
    scale = scale.bfloat16().float().masked_fill_(scale == 0, 1.0)
    scaled = weight / scale[:, None]
    return (scaled.round_() if storage == torch.int8 else scaled).to(storage), scale


def numbers(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """Stored numbers in a precision to compute in, which all of them fit exactly."""
    if stored.device.type != "cpu" or stored.dtype != torch.float8_e4m3fn:
        return stored.to(dtype)
    # PyTorch converts one by one on the CPU; this is ten times as fast. Moved to where float16 has
    # exponent and fraction, the bits are the number / 256, as that is how much the biases differ.
    bits = stored.view(torch.int8).to(torch.int16)
    halves = bits.bitwise_left_shift_(7).bitwise_and_(~(1 << 14)).view(torch.float16)
    return halves.to(dtype).mul_(256)


@cache
def has_int8_product() -> bool:
    """Whether PyTorch's private product of bfloat16 rows and int8 weights exists on the CPU,
    computes what is expected, and gives a row the same bits in any company. Found out once."""
    weight = torch.arange(-1024, 1024).remainder(255).sub(127).view(32, 64).to(torch.int8)
    scale = torch.arange(1, 33).bfloat16() / 1024
    x = torch.arange(320.0).remainder(7).sub(3).view(5, 64).bfloat16()
    try:
        together = torch.ops.aten._weight_int8pack_mm(x, weight, scale)
        alone = [torch.ops.aten._weight_int8pack_mm(row, weight, scale) for row in x.split(1)]
    except (AttributeError, RuntimeError, TypeError):
        return False
    expected = F.linear(x.float(), weight.float()) * scale.float()
    close = torch.allclose(together.float(), expected, rtol=1e-2, atol=1e-2)
    return close and torch.equal(together, torch.cat(alone))


def int8_product_takes(x: Tensor, weight: Tensor) -> bool:
    """Whether the private product multiplies x [..., in] by a stored weight [out, in].

    It reads whole vectors without a look at the sizes: others than these would crash.
    """
    outs, ins = weight.shape
    return (
        x.device.type == "cpu"
        and weight.dtype == torch.int8
        and x.dtype in (torch.float32, torch.bfloat16)
        and ins % 64 == 0
        and outs % 16 == 0
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and has_int8_product()
    )


class PackedLinear(nn.Module):
    """A linear layer that stores its weight in 8 bits (see `pack`).

    On the CPU, PyTorch's product for int8 reads the stored weight itself, in which inputs are
    rounded to bfloat16. Everywhere else each product makes a copy in the precision of its inputs,
    a slice at a time: that saves memory, not time.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, storage: torch.dtype
    ) -> None:
        super().__init__()
        stored = torch.empty(out_features, in_features, dtype=storage)
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.scale = nn.Parameter(torch.empty(out_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output [..., out] of x [..., in], with its stored weight and its bias where x
        lies."""
        scale = self.scale.to(x.device)
        if int8_product_takes(x, weight):
            rows = x.reshape(-1, x.shape[-1]).bfloat16()
            out = torch.ops.aten._weight_int8pack_mm(rows, weight, scale.bfloat16())
            out = out.to(x.dtype).view(*x.shape[:-1], len(weight))
        else:
            out = self._copied_product(x, weight, scale)
        return out if bias is None else out + bias

    def _copied_product(self, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        if x.dtype == torch.float16:
            x, scale = x * HEADROOM, scale / HEADROOM
        rows = weight.split(max(1, SLICE // weight.shape[1]))
        out = torch.cat([linear(x, numbers(part, x.dtype)) for part in rows], dim=-1)
        return out.mul_(scale)

    @property
    def copied(self) -> int:
        """Weights of which a product holds a copy at once."""
        return min(self.weight.numel(), max(SLICE, self.weight.shape[1]))

    def extra_repr(self) -> str:
        outs, ins = self.weight.shape
        return f"{ins}, {outs}, bias={self.bias is not None}, storage={self.weight.dtype}"


class HostEmbedding(nn.Module):
    """An embedding of which only the rows looked up leave the CPU.

    The weight is no parameter: nothing moves it, and nobody counts it as memory of the device.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = torch.empty(count, width)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *_: Any) -> None:
        self.weight = state_dict[f"{prefix}weight"]

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids.cpu(), self.weight).to(ids.device)


class OnHost(nn.Module):
    """A layer whose weights stay on the CPU. They are copied to where its inputs lie, at every use:
    time for memory, where a part is used once for many passes of another."""

    def _apply(self, fn: Any, recurse: bool = True) -> OnHost:
        return self


class HostConv2d(OnHost, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.device)
        return self._conv_forward(x, self.weight.to(x.device), bias)


class HostGroupNorm(OnHost, nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.device), self.bias.to(x.device)
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)


class HostCodes(OnHost, Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids.cpu(), self.weight).to(ids.device)


class HostOps:
    """Layers of a part that stays on the CPU."""

    Conv2d = HostConv2d
    GroupNorm = HostGroupNorm
    Embedding = HostCodes


def host_ops(ops: Any) -> Any:
    """The layers of a part that may stay on the CPU; `ops` may bring their own."""
    return getattr(ops, "HostOps", HostOps)


def packed_ops(ops: Any, storage: torch.dtype) -> Any:
    """The layers that a decoder is built from, of which linear ones store their weights so.

    Args:
        ops: Layers in full precision; they may bring a `PackedLinear` of their own.
    """
    return SimpleNamespace(
        Linear=partial(getattr(ops, "PackedLinear", PackedLinear), storage=storage),
        Embedding=HostEmbedding,
        RMSNorm=ops.RMSNorm,
        LayerNorm=ops.LayerNorm,
    )
