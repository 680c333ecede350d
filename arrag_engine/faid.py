"""FAiD: an adapter that lets retrieved patches speak inside the decoder.

It stands beside the model and is handed to every pass: the model's own layers never change, so one
loaded model serves any number of adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from . import ops as default_ops
from .blend import BlendPass, FeatureMaps, PatchBlender, folded, slot_table
from .bounds import CANDIDATES, STRENGTH, check_choice
from .janus import GenHead, JanusConfig, JanusPro
from .llama import Augmentation, LayerAdapter, LowRank
from .settings import SEMANTICS, AdapterConfig, Semantics


class FaidAdapter(nn.Module):
    """Blenders with their norms, low-rank changes of q and v, and a prediction head."""

    def __init__(self, base: JanusConfig, config: AdapterConfig, ops: Any = default_ops) -> None:
        super().__init__()
        self.config = config
        llama = base.llama
        q_size = (llama.hidden_size, llama.query_size)
        v_size = (llama.hidden_size, llama.kv_size)
        rank, alpha, dropout = config.rank, config.alpha, config.dropout
        self.layers = nn.ModuleDict()
        for i in range(llama.num_layers):
            layer = LayerAdapter()
            if rank:
                layer.q_proj = LowRank(q_size, rank, alpha, dropout, ops)
                layer.v_proj = LowRank(v_size, rank, alpha, dropout, ops)
            if i in config.blender_layers:
                layer.blender = PatchBlender(llama.hidden_size, config.hops)
                layer.retrieval_layernorm = ops.RMSNorm(llama.hidden_size, eps=llama.rms_norm_eps)
            if rank or i in config.blender_layers:
                self.layers[str(i)] = layer
        self.gen_head = None
        if config.head:
            self.gen_head = GenHead(base, ops)

    @property
    def by_layer(self) -> dict[int, LayerAdapter]:
        return {int(name): cast(LayerAdapter, layer) for name, layer in self.layers.items()}


def assemble(
    base: JanusConfig,
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


@dataclass(frozen=True)
class Faid:
    """An adapter and how to use it."""

    adapter: FaidAdapter
    strength: float = 1.0
    """0 = the base model, 1 = as trained, up to 2 beyond it."""
    candidates: int = 0
    """K: how many retrieved codes the blenders hear at each position, duplicates kept; 0 = as many
    as they were trained with."""
    semantics: Semantics = "step"

    def __post_init__(self) -> None:
        STRENGTH.check(self.strength)
        CANDIDATES.check(self.candidates)
        check_choice("semantics", self.semantics, SEMANTICS)

    @property
    def heard(self) -> int:
        """How many codes the blenders hear at each position."""
        return self.candidates or self.adapter.config.candidates


class Blending:
    """An adapter in one drawing of B pictures: what its blenders remember from pass to pass."""

    def __init__(self, faid: Faid, model: JanusPro, batch: int, device: torch.device) -> None:
        self.faid = faid
        self.model = model
        self.device = device
        self.prompt = Augmentation(faid.adapter.by_layer, faid.adapter.gen_head, faid.strength)
        """For the prompt: blenders hear nothing there."""
        config, hidden = faid.adapter.config, model.config.llama.hidden_size
        size = model.config.grid.size
        self.maps = FeatureMaps(config.blender_layers, batch, size, hidden, device, model.dtype)
        self.slots = slot_table(model.config.grid, config.hops, device)

    @property
    def candidates(self) -> int:
        """How many codes are wanted at each position."""
        return self.faid.heard if self.faid.adapter.config.blender_layers else 0

    def at(self, positions: np.ndarray, codes: np.ndarray, active: np.ndarray) -> Augmentation:
        """For a pass that predicts positions [B, L] with the retrieved codes [B, L, K].

        Args:
            codes: -1 = none.
            active: [B, L] where retrieval runs.
        """
        places, heard, runs = (
            torch.from_numpy(a).to(self.device) for a in (positions, codes, active)
        )
        work = BlendPass(
            places,
            self.model.embed_candidates(heard),
            runs,
            self.slots,
            self.maps,
            semantics=self.faid.semantics,
        )
        return replace(self.prompt, blending=work)


def whole_picture(
    model: JanusPro,
    adapter: FaidAdapter,
    codes: Tensor,
    active: Tensor,
    prompt_length: int,
    semantics: Semantics = "step",
    rows: Tensor | None = None,
    checkpointing: bool = False,
) -> Augmentation:
    """The adapter in one pass over prompts and whole pictures [B, N] at once, as in training.

    Args:
        codes: Retrieved codes [B, N, K], -1 = none.
        active: [N] where retrieval runs.
        rows: [B] 1 or 0, which pictures the blenders work on; all when absent.
        checkpointing: See `Augmentation`.
    """
    batch, size, _ = codes.shape
    positions = torch.arange(size, device=codes.device).expand(batch, -1)
    work = BlendPass(
        positions,
        model.embed_candidates(codes.masked_fill(~active[:, None], -1)),
        active.expand(batch, -1),
        slot_table(model.config.grid, adapter.config.hops, codes.device),
        first=prompt_length - 1,
        semantics=semantics,
        rows=rows,
    )
    return Augmentation(
        adapter.by_layer, adapter.gen_head, blending=work, checkpointing=checkpointing
    )


def forced_states(
    model: JanusPro,
    text: Tensor,
    tokens: Tensor,
    extra: Augmentation | None = None,
    padding: Sequence[int] | None = None,
) -> Tensor:
    """Hidden states [B, T + N, hidden] of prompts [B, T] and their pictures' tokens [B, N].

    Token i is predicted at T - 1 + i.
    """
    x = torch.cat((model.embed_text(text), model.embed_codes(tokens)), dim=1)
    return model.llama(x, None, None, extra, padding)
