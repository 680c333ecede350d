"""Layers the engine is built from when nobody passes others (ComfyUI passes its casting ones)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Conv2d = nn.Conv2d
GroupNorm = nn.GroupNorm
LayerNorm = nn.LayerNorm
RMSNorm = nn.RMSNorm


@cache
def has_onednn_calls() -> bool:
    """Whether PyTorch's private oneDNN calls exist and compute a linear layer. Found out once.

    They are outside PyTorch's public interface: a release may drop them or change their arguments,
    and some builds (macOS) come without oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    weight = torch.arange(32.0).view(4, 8) / 32
    bias, x = torch.arange(4.0), weight[:2]
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        products = [_onednn_product(x, w, bias) for w in (weight, packed)]
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError, TypeError):
        return False
    return all(torch.allclose(product, F.linear(x, weight, bias)) for product in products)


def _onednn_product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def onednn_takes(dtype: torch.dtype) -> bool:
    """Whether PyTorch's oneDNN library computes with this dtype on this CPU."""
    if not has_onednn_calls():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` whose result for a row does not depend on the rows beside it, on the CPU.

    There PyTorch gives float32 to a library that rounds a row differently when others come along,
    and a picture would depend on the batch and window it is drawn in. oneDNN does not, for two rows
    or more, and is faster for the handful of rows of a decoding step. Without oneDNN, each row is
    multiplied alone: the same guarantee, at the price of reading the weights once for each row.
    """
    if not weight.is_mkldnn and not _must_be_row_exact(x, weight):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    if weight.is_mkldnn or onednn_takes(x.dtype):
        alone = len(rows) == 1
        rows = F.pad(rows, (0, 0, 0, 1)) if alone else rows
        out = _onednn_product(rows, weight, bias)
        out = out[:1] if alone else out
    else:
        out = torch.cat([F.linear(row, weight, bias) for row in rows.split(1)])
    return out.view(*x.shape[:-1], len(weight))


def _must_be_row_exact(x: Tensor, weight: Tensor) -> bool:
    fp32 = x.dtype == weight.dtype == torch.float32
    # oneDNN's product has no gradient, and training needs no such exactness.
    return x.device.type == "cpu" and fp32 and not torch.is_grad_enabled()


class Linear(nn.Linear):
    """`nn.Linear` that multiplies by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def pack_linears(model: nn.Module) -> None:
    """Lay the weights of all linear layers out as oneDNN reads them fastest, on the CPU.

    For drawing only: packed weights have no gradient and stay on the CPU. They take the place of
    the plain ones, one after the other, so memory never holds both.
    """
    for layer in model.modules():
        if isinstance(layer, Linear) and onednn_takes(layer.weight.dtype):
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
            layer.weight = nn.Parameter(packed, requires_grad=False)


LANES = 64
"""A multiple of what any CPU's vector loop takes at once."""
SLAB = 2**15
"""Elements up to which PyTorch does not share an elementwise loop out among threads."""


def rowwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """An elementwise function of x [..., n] that gives a row the same bits in any company.

    What is left over at the end of a CPU's vector loop is worked out by other code, which rounds
    differently; where the end is depends on all rows. So rows are filled up to whole vectors, and
    taken in slabs that one thread works through.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled():
        return function(x)
    n = x.shape[-1]
    rows = F.pad(x.reshape(-1, n), (0, -n % LANES))
    slabs = rows.split(max(1, SLAB // rows.shape[1]))
    return torch.cat([function(slab) for slab in slabs])[:, :n].reshape(x.shape)


class Embedding(nn.Embedding):
    """`nn.Embedding` that leaves meta tensors alone: drawing random numbers for a tensor without
    storage imports PyTorch's compiler, two seconds of every start."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()
