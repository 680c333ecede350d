"""The layers that models are built from on ComfyUI's GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import comfy.ops
from torch import Tensor, nn

from ..arrag_engine.models.packed import PackedLinear


class CastingPackedLinear(PackedLinear, comfy.ops.CastWeightBiasOp):
    """Weights of 8 bits that may stay on the CPU; ComfyUI's casting brings them over as they are
    stored."""

    comfy_cast_weights = True

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, stream = comfy.ops.cast_bias_weight(
            self, x, dtype=self.weight.dtype, bias_dtype=x.dtype, offloadable=True
        )
        out = self.product(x, weight, bias)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return out


class CastingOps(comfy.ops.manual_cast):
    """ComfyUI's layers, and the engine's for stored weights as one of them."""

    PackedLinear = CastingPackedLinear
    HostOps = comfy.ops.manual_cast
    """ComfyUI decides where the picture tokenizer lies."""


@contextmanager
def plain_layers(module: nn.Module) -> Iterator[None]:
    """Let ComfyUI's layers compute as the plain ones that they extend. Their weights lie where they
    compute, and no question for an interrupt, no cast and no stream gets into a recording."""
    layers = [part for part in module.modules() if hasattr(part, "comfy_cast_weights")]
    for layer in layers:
        casting = comfy.ops.CastWeightBiasOp
        own = next(kind for kind in type(layer).__mro__ if not issubclass(kind, casting))
        layer.forward = MethodType(own.forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
