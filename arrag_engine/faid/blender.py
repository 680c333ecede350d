"""PatchBlender: FAiD's small convolutions over what was drawn around a position.

In the middle of the hidden states drawn around a position stands, once per candidate, what
retrieval proposes for it. Two convolutions with nothing between them reduce that window to one
vector. They are one linear map, of which all but the middle is the same for every candidate k:

    u_k = Σ_o A_o h_o + C x_k + b

The window holds what is drawn before its middle in raster order, or, for a model that fills its
grid in any order, what is known on all sides. Both are parts of one kernel that the same parameters
make; what is not known counts as zero.

Both forms below work with A, C and b; they differ in whether these are worked out from the
convolutions each time, through which a gradient flows, or once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..grid import Offset
from ..models import ops as default_ops
from ..models.ops import rowwise
from ..settings import HOPS, AdapterOrder


def causal_offsets(hops: tuple[int, ...]) -> tuple[Offset, ...]:
    """The offsets within reach whose positions are drawn before the middle, in raster order."""
    reach = max(hops)
    window = ((r, c) for r in range(-reach, 1) for c in range(-reach, reach + 1))
    return tuple(offset for offset in window if offset < (0, 0))


def all_offsets(hops: tuple[int, ...]) -> tuple[Offset, ...]:
    """The offsets within reach but the middle, row by row."""
    sides = range(-max(hops), max(hops) + 1)
    return tuple((r, c) for r in sides for c in sides if (r, c) != (0, 0))


def seen_offsets(hops: tuple[int, ...], order: AdapterOrder) -> tuple[Offset, ...]:
    """The offsets that a blender sees."""
    return causal_offsets(hops) if order == "raster" else all_offsets(hops)


class PatchBlender(nn.Module):
    """A blender as checkpoints hold it; parameter names are the official ones.

    Raises:
        InputError: Other hops than 1, 2, or both.
    """

    def __init__(self, hidden: int, hops: tuple[int, ...], order: AdapterOrder = "raster") -> None:
        super().__init__()
        if hops not in HOPS:
            raise InputError(f"a blender with hops {list(hops)}; only [1], [2] and [1, 2] exist")
        self.hidden = hidden
        self.hops = hops
        self.order: AdapterOrder = order
        for hop in hops:
            self.add_module(f"conv{hop}", nn.Conv2d(hidden, hidden, hop + 1))
            self.add_module(f"conv{hop}2", nn.Conv2d(hidden, hidden, hop + 1))
        if len(hops) > 1:
            self.conv_weights = nn.Parameter(torch.zeros(len(hops)))
        self.mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def fold(self) -> tuple[Tensor, Tensor, Tensor]:
        """A [hidden, offsets * hidden], C [hidden, hidden], b [hidden], with a gradient."""
        reach, whole = max(self.hops), self.order == "masked"
        kernels, biases = [], []
        for hop in self.hops:
            first, second = self.get_submodule(f"conv{hop}"), self.get_submodule(f"conv{hop}2")
            kernel, bias = compose(first, second, whole)
            margin = reach - hop
            kernels.append(F.pad(kernel, (margin, margin, margin, margin if whole else 0)))
            biases.append(bias)
        if len(self.hops) > 1:
            one, two = torch.softmax(self.conv_weights, dim=0).to(kernels[0].dtype)
            kernel, bias = one * kernels[0] + two * kernels[1], one * biases[0] + two * biases[1]
        else:
            kernel, bias = kernels[0], biases[0]
        flat = kernel.flatten(2)  # [in, out, window], the middle right after the causal offsets
        middle = len(causal_offsets(self.hops))
        around = flat[..., :middle]
        if whole:
            around = torch.cat((around, flat[..., middle + 1 :]), dim=-1)
        return around.permute(1, 2, 0).flatten(1), flat[..., middle].T, bias

    def forward(self, around: Tensor, centres: Tensor) -> Tensor:
        """f [..., K, hidden] of the surroundings seen [..., offsets * hidden] and the candidates
        [..., K, hidden]."""
        a, c, b = self.fold()
        return gate(self.mlp, F.linear(around, a, b)[..., None, :] + F.linear(centres, c))


class FoldedBlender(nn.Module):
    """A blender for drawing: A and b are the layer `around`, C is the layer `centre`."""

    def __init__(
        self,
        hidden: int,
        hops: tuple[int, ...],
        ops: Any = default_ops,
        order: AdapterOrder = "raster",
    ) -> None:
        super().__init__()
        self.hops = hops
        self.around = ops.Linear(len(seen_offsets(hops, order)) * hidden, hidden)
        self.centre = ops.Linear(hidden, hidden, bias=False)
        self.mlp = nn.Sequential(ops.Linear(hidden, hidden), nn.ReLU(), ops.Linear(hidden, 1))

    def forward(self, around: Tensor, centres: Tensor) -> Tensor:
        """As `PatchBlender.forward`."""
        return gate(self.mlp, self.around(around)[..., None, :] + self.centre(centres))


def compose(first: Any, second: Any, whole: bool = False) -> tuple[Tensor, Tensor]:
    """The kernel that two k x k convolutions are together, and their bias [out].

    Args:
        whole: All of it [in, out, 2k - 1, 2k - 1]; else its upper rows [in, out, k, 2k - 1], the
            last one being the middle's: what is below is not drawn yet.
    """
    k = second.weight.shape[-1]
    below = k - 1 if whole else 0
    inputs = F.pad(first.weight.transpose(0, 1), (k - 1, k - 1, k - 1, below))
    kernel = F.conv2d(inputs, second.weight.flip(-1, -2))
    return kernel, second.weight.sum((2, 3)) @ first.bias + second.bias


def gate(mlp: nn.Module, u: Tensor) -> Tensor:
    """f = sigmoid(mlp(u)) * u."""
    return rowwise(torch.sigmoid, mlp(u)) * u


@torch.no_grad()
def folded(blender: PatchBlender, dtype: torch.dtype, ops: Any = default_ops) -> FoldedBlender:
    """The blender for drawing, in `dtype`; folded in the precision the blender has."""
    with torch.device("meta"):
        out = FoldedBlender(blender.hidden, blender.hops, ops, blender.order)
    a, c, b = blender.fold()
    state = {"around.weight": a, "around.bias": b, "centre.weight": c}
    state |= {f"mlp.{name}": value for name, value in blender.mlp.state_dict().items()}
    out.load_state_dict({n: t.to(dtype).contiguous() for n, t in state.items()}, assign=True)
    return out.eval().requires_grad_(False)
