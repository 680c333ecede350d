"""What an adapter consists of, layer by layer; it stands beside the model and changes none of it,
so one loaded model serves any number of adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..grid import ANY_ORDER, RASTER, DrawingOrder
from ..models import ops as default_ops
from ..models.families import Sizes
from ..settings import AdapterConfig, AdapterOrder
from .blender import FoldedBlender, PatchBlender, folded


def order_for(order: DrawingOrder) -> AdapterOrder:
    """The order of the adapters for models of a drawing order."""
    return "raster" if order.raster else "masked"


def order_name(order: AdapterOrder) -> str:
    """What messages call the drawing order of its models."""
    return RASTER.name if order == "raster" else ANY_ORDER.name


class LowRank(nn.Module):
    """What low-rank adaptation adds to a linear layer: x -> alpha / rank · B A x."""

    def __init__(
        self,
        sizes: tuple[int, int],
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        ops: Any = default_ops,
    ) -> None:
        super().__init__()
        self.lora_A = ops.Linear(sizes[0], rank, bias=False)
        self.lora_B = ops.Linear(rank, sizes[1], bias=False)
        self.scale = alpha / rank
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.lora_B(self.lora_A(F.dropout(x, self.dropout, self.training))) * self.scale


class LayerAdapter(nn.Module):
    """What an adapter brings for one decoder layer, each part optional."""

    def __init__(
        self,
        q_proj: LowRank | None = None,
        v_proj: LowRank | None = None,
        blender: PatchBlender | FoldedBlender | None = None,
        retrieval_layernorm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.q_proj = q_proj
        self.v_proj = v_proj
        self.blender = blender
        self.retrieval_layernorm = retrieval_layernorm


class FaidAdapter(nn.Module):
    """Blenders with their norms, low-rank changes of q and v, and a prediction head."""

    def __init__(self, base: Sizes, config: AdapterConfig, ops: Any = default_ops) -> None:
        super().__init__()
        self.config = config
        decoder = base.decoder
        q_size = (decoder.hidden_size, decoder.query_size)
        v_size = (decoder.hidden_size, decoder.kv_size)
        rank, alpha, dropout = config.rank, config.alpha, config.dropout
        self.layers = nn.ModuleDict()
        for i in range(decoder.num_layers):
            layer = LayerAdapter()
            if rank:
                layer.q_proj = LowRank(q_size, rank, alpha, dropout, ops)
                layer.v_proj = LowRank(v_size, rank, alpha, dropout, ops)
            if i in config.blender_layers:
                layer.blender = PatchBlender(decoder.hidden_size, config.hops, config.order)
                layer.retrieval_layernorm = ops.RMSNorm(decoder.hidden_size, eps=decoder.norm_eps)
            if rank or i in config.blender_layers:
                self.layers[str(i)] = layer
        self.gen_head = None
        if config.head:
            self.gen_head = base.code_head(ops)

    @property
    def by_layer(self) -> dict[int, LayerAdapter]:
        return {int(name): cast(LayerAdapter, layer) for name, layer in self.layers.items()}


def assemble(
    base: Sizes,
    config: AdapterConfig,
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    ops: Any = default_ops,
    progress: Callable[[int, int], None] | None = None,
    fold_on: torch.device | None = None,
) -> FaidAdapter:
    """An adapter for drawing, in `dtype`, its blenders folded one after the other in float32.

    Args:
        read: Gives a tensor by its name in `FaidAdapter`.
        progress: Called with (parts done, parts in all).
        fold_on: The device that folds; the adapter itself is made on the CPU.
    """
    with torch.device("meta"):
        adapter = FaidAdapter(base, config, ops).eval()
    parts: list[tuple[str, nn.Module]] = []
    parts += [(f"layers.{i}", layer) for i, layer in adapter.by_layer.items()]
    if adapter.gen_head is not None:
        parts.append(("gen_head", adapter.gen_head))
    for done, (prefix, part) in enumerate(parts, start=1):
        state = {}
        for name in part.state_dict():
            in_blender = name.startswith("blender.")
            state[name] = read(f"{prefix}.{name}").to(torch.float32 if in_blender else dtype)
        part.load_state_dict(state, assign=True)
        if isinstance(part, LayerAdapter) and isinstance(part.blender, PatchBlender):
            part.blender = folded(part.blender.to(fold_on or "cpu"), dtype, ops).to("cpu")
        if progress is not None:
            progress(done, len(parts))
    return adapter.requires_grad_(False)
