"""Layers the engine is built from when nobody passes others (ComfyUI passes its casting ones)."""

from __future__ import annotations

from torch import Tensor, nn

Conv2d = nn.Conv2d
GroupNorm = nn.GroupNorm
RMSNorm = nn.RMSNorm

FEW_ROWS = range(2, 33)
"""Row counts of a decoding step: streams times images times window."""


class Linear(nn.Linear):
    """`nn.Linear` whose product with a handful of rows runs at memory speed on the CPU.

    The library's x W^T reads the weights once per row there; W x^T reads them once in all.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if x.device.type != "cpu" or rows not in FEW_ROWS or self.training:
            return super().forward(x)
        out = (self.weight @ x.reshape(rows, -1).T).T
        if self.bias is not None:
            out = out + self.bias
        return out.reshape(*x.shape[:-1], -1)


class Embedding(nn.Embedding):
    """`nn.Embedding` that leaves meta tensors alone: drawing random numbers for a tensor without
    storage imports PyTorch's compiler, two seconds of every start."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()
