"""PatchBlender: FAiD's small convolutions over what was drawn around a position.

In the middle of the hidden states drawn around a position stands, once per candidate, what
retrieval proposes for it. Two convolutions with nothing between them reduce that window to one
vector. They are one linear map, of which all but the middle is the same for every candidate k:

    u_k = Σ_o A_o h_o + C x_k + b

So both forms below work with A, C and b; they differ in whether these are worked out from the
convolutions each time, through which a gradient flows, or once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ops as default_ops
from .errors import InputError
from .grid import Grid, Offset, offset_table
from .ops import rowwise
from .settings import HOPS, Semantics


def causal_offsets(hops: tuple[int, ...]) -> tuple[Offset, ...]:
    """The offsets within reach whose positions are drawn before the middle, in raster order."""
    reach = max(hops)
    window = ((r, c) for r in range(-reach, 1) for c in range(-reach, reach + 1))
    return tuple(offset for offset in window if offset < (0, 0))


class PatchBlender(nn.Module):
    """A blender as checkpoints hold it; parameter names are the official ones.

    Raises:
        InputError: Other hops than 1, 2, or both.
    """

    def __init__(self, hidden: int, hops: tuple[int, ...]) -> None:
        super().__init__()
        if hops not in HOPS:
            raise InputError(f"a blender with hops {list(hops)}; only [1], [2] and [1, 2] exist")
        self.hidden = hidden
        self.hops = hops
        for hop in hops:
            self.add_module(f"conv{hop}", nn.Conv2d(hidden, hidden, hop + 1))
            self.add_module(f"conv{hop}2", nn.Conv2d(hidden, hidden, hop + 1))
        if len(hops) > 1:
            self.conv_weights = nn.Parameter(torch.zeros(len(hops)))
        self.mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def fold(self) -> tuple[Tensor, Tensor, Tensor]:
        """A [hidden, offsets * hidden], C [hidden, hidden], b [hidden], with a gradient."""
        reach, kernels, biases = max(self.hops), [], []
        for hop in self.hops:
            first, second = self.get_submodule(f"conv{hop}"), self.get_submodule(f"conv{hop}2")
            kernel, bias = compose(first, second)
            margin = reach - hop
            kernels.append(F.pad(kernel, (margin, margin, margin, 0)))
            biases.append(bias)
        if len(self.hops) > 1:
            one, two = torch.softmax(self.conv_weights, dim=0).to(kernels[0].dtype)
            kernel, bias = one * kernels[0] + two * kernels[1], one * biases[0] + two * biases[1]
        else:
            kernel, bias = kernels[0], biases[0]
        flat = kernel.flatten(2)  # [in, out, window], the middle right after the causal offsets
        middle = len(causal_offsets(self.hops))
        around = flat[..., :middle].permute(1, 2, 0).flatten(1)
        return around, flat[..., middle].T, bias

    def forward(self, around: Tensor, centres: Tensor) -> Tensor:
        """f [..., K, hidden] of the drawn surroundings [..., offsets * hidden] and the candidates
        [..., K, hidden]."""
        a, c, b = self.fold()
        return gate(self.mlp, F.linear(around, a, b)[..., None, :] + F.linear(centres, c))


class FoldedBlender(nn.Module):
    """A blender for drawing: A and b are the layer `around`, C is the layer `centre`."""

    def __init__(self, hidden: int, hops: tuple[int, ...], ops: Any = default_ops) -> None:
        super().__init__()
        self.hops = hops
        self.around = ops.Linear(len(causal_offsets(hops)) * hidden, hidden)
        self.centre = ops.Linear(hidden, hidden, bias=False)
        self.mlp = nn.Sequential(ops.Linear(hidden, hidden), nn.ReLU(), ops.Linear(hidden, 1))

    def forward(self, around: Tensor, centres: Tensor) -> Tensor:
        """As `PatchBlender.forward`."""
        return gate(self.mlp, self.around(around)[..., None, :] + self.centre(centres))


def compose(first: Any, second: Any) -> tuple[Tensor, Tensor]:
    """The upper rows of the kernel [in, out, k, 2k - 1] that two k x k convolutions are together,
    the middle's row being the last, and their bias [out]. What is below is not drawn yet."""
    k = second.weight.shape[-1]
    inputs = F.pad(first.weight.transpose(0, 1), (k - 1, k - 1, k - 1, 0))
    kernel = F.conv2d(inputs, second.weight.flip(-1, -2))
    return kernel, second.weight.sum((2, 3)) @ first.bias + second.bias


def gate(mlp: nn.Module, u: Tensor) -> Tensor:
    """f = sigmoid(mlp(u)) * u."""
    return rowwise(torch.sigmoid, mlp(u)) * u


@torch.no_grad()
def folded(blender: PatchBlender, dtype: torch.dtype, ops: Any = default_ops) -> FoldedBlender:
    """The blender for drawing, in `dtype`; folded in the precision the blender has."""
    with torch.device("meta"):
        out = FoldedBlender(blender.hidden, blender.hops, ops)
    a, c, b = blender.fold()
    state = {"around.weight": a, "around.bias": b, "centre.weight": c}
    state |= {f"mlp.{name}": value for name, value in blender.mlp.state_dict().items()}
    out.load_state_dict({n: t.to(dtype).contiguous() for n, t in state.items()}, assign=True)
    return out.eval().requires_grad_(False)


def slot_table(grid: Grid, hops: tuple[int, ...], device: torch.device) -> Tensor:
    """Slots [N, offsets] of a feature map that the surroundings of each position stand in."""
    return torch.from_numpy(offset_table(grid, causal_offsets(hops)) + 1).to(device)


class FeatureMaps:
    """The normalised hidden states of the drawn tokens of one drawing, per blender layer.

    Slot j + 1 of a map belongs to token j; slot 0 stays zero and stands for what lies outside.
    """

    def __init__(
        self,
        layers: Iterable[int],
        rows: int,
        size: int,
        hidden: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.maps = {
            layer: torch.zeros(rows, size + 1, hidden, device=device, dtype=dtype)
            for layer in layers
        }


@dataclass(frozen=True)
class BlendPass:
    """What the blenders work on in one pass over B pictures, L positions of each."""

    positions: Tensor
    """[B, L] grid positions that are being predicted."""
    candidates: Tensor
    """[B, L, K, hidden] embeddings of the retrieved codes, zero where there is none."""
    active: Tensor
    """[B, L] whether retrieval runs at the position."""
    slots: Tensor
    """[N, offsets] as `slot_table` makes them."""
    maps: FeatureMaps | None = None
    """What was drawn in former passes; None when this pass sees the pictures from the start."""
    first: int = 0
    """The pass's input that predicts positions[:, 0]; the others follow."""
    semantics: Semantics = "step"
    rows: Tensor | None = None
    """[B] 1 or 0: which pictures are blended at all; all when absent."""

    def surroundings(self, layer: int, h: Tensor) -> Tensor:
        """The drawn hidden states around each position [B, L, offsets * hidden].

        Args:
            h: Normalised hidden states [B, L, hidden] of the inputs that predict the positions:
                the tokens just before them. They are remembered.
        """
        if self.maps is None:
            drawn = h.new_zeros(len(h), len(self.slots) + 1, h.shape[-1])
        else:
            drawn = self.maps.maps[layer]
        row = torch.arange(len(h), device=h.device)[:, None]
        # The input of position 0 is the prompt's end, no token: slot 0 stays zero.
        drawn[row, self.positions] = h * (self.positions > 0)[..., None].to(h.dtype)
        return drawn[row[..., None], self.slots[self.positions]].flatten(2)

    def add(self, x: Tensor, features: Tensor) -> Tensor:
        """x [rows, length, hidden] plus features [B, L, hidden] where the positions are predicted.

        Rows after the first B, the unconditional stream, stay as they are.
        """
        if self.rows is not None:
            features = features * self.rows[:, None, None].to(features.dtype)
        batch, count, _ = features.shape
        after = x.shape[1] - self.first - count
        return x + F.pad(features.to(x.dtype), (0, 0, self.first, after, 0, len(x) - batch))


def blend(
    blender: PatchBlender | FoldedBlender,
    norm: Any,
    layer: int,
    hidden: Tensor,
    blended: Tensor | None,
    work: BlendPass,
) -> Tensor:
    """One blender in its layer: f [B, L, K, hidden], which the next blender takes as candidates.

    What the layer adds to the residual stream is the mean over K.

    Args:
        norm: `retrieval_layernorm`.
        hidden: The layer's normalised inputs [rows >= B, length, hidden].
        blended: The former blender's output; None for the first one.
    """
    count = work.positions.shape[1]
    h = hidden[: len(work.positions), work.first : work.first + count]
    given = work.candidates if blended is None else blended
    centres = norm(given.to(norm.weight.dtype))  # in training the base may be less precise
    if blended is None or work.semantics == "stepzero":
        centres = centres * work.active[..., None, None].to(centres.dtype)
    return blender(work.surroundings(layer, h), centres)
