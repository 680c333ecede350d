"""An adapter in the passes of a drawing, and in one pass over whole pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..bounds import CANDIDATES, STRENGTH, check_choice
from ..models.base import Backbone, MaskedBackbone, RasterBackbone
from ..models.hooks import DrawingHook
from ..models.janus.model import JanusPro
from ..settings import SEMANTICS, Semantics
from .adapter import FaidAdapter
from .hook import BlendPass, FaidHook, FeatureMaps, MaskedPass, slot_table


@dataclass(frozen=True)
class Faid:
    """An adapter and how to use it."""

    adapter: FaidAdapter
    strength: float = 1.0
    """0 = the base model, 1 = as trained, up to 2 beyond it."""
    candidates: int = 0
    """K: how many retrieved codes the blenders receive at each position, duplicates kept; 0 = as
    many as they were trained with."""
    semantics: Semantics = "step"

    def __post_init__(self) -> None:
        STRENGTH.check(self.strength)
        CANDIDATES.check(self.candidates)
        check_choice("semantics", self.semantics, SEMANTICS)

    @property
    def received(self) -> int:
        """How many codes the blenders receive at each position."""
        return self.candidates or self.adapter.config.candidates

    @property
    def works(self) -> bool:
        """Whether the adapter changes anything."""
        return self.strength > 0

    @property
    def wanted(self) -> int:
        """How many codes are looked up at each position."""
        return self.received if self.works and self.adapter.config.blender_layers else 0


class Blending:
    """An adapter in one drawing of B pictures: what its blenders remember from pass to pass.

    Args:
        strength: In place of the number of `faid`, a tensor [] on the device.
    """

    def __init__(
        self,
        faid: Faid,
        model: RasterBackbone,
        batch: int,
        device: torch.device,
        strength: Tensor | None = None,
    ) -> None:
        self.faid = faid
        self.model = model
        self.device = device
        factor = faid.strength if strength is None else strength
        self.prompt = FaidHook(faid.adapter.by_layer, faid.adapter.gen_head, factor)
        """For the prompt: blenders receive nothing there."""
        config, hidden = faid.adapter.config, model.hidden_size
        size = model.grid.size
        self.maps = FeatureMaps(config.blender_layers, batch, size, hidden, device, model.dtype)
        self.slots = slot_table(model.grid, config.hops, device)

    def forget(self) -> None:
        """Begin another drawing."""
        for drawn in self.maps.maps.values():
            drawn.zero_()

    def opening(self, length: int) -> FaidHook:
        """For a prompt of `length` ids whose last one predicts position 0, where nothing is
        retrieved."""
        nothing = torch.full((1, 1, max(1, self.faid.wanted)), -1, device=self.device)
        work = BlendPass(
            torch.zeros(1, 1, dtype=torch.long, device=self.device),
            embed_candidates(self.model, nothing),
            torch.zeros(1, 1, dtype=torch.bool, device=self.device),
            self.slots,
            first=length - 1,
            semantics=self.faid.semantics,
        )
        return replace(self.prompt, blending=work)

    def at(self, positions: Tensor, codes: Tensor, active: Tensor) -> FaidHook:
        """For a pass that predicts positions [B, L] with the retrieved codes [B, L, K].

        Args:
            codes: -1 = none.
            active: [B, L] where retrieval runs.
        """
        work = BlendPass(
            positions,
            embed_candidates(self.model, codes),
            active,
            self.slots,
            self.maps,
            semantics=self.faid.semantics,
        )
        return replace(self.prompt, blending=work)


class MaskedBlending:
    """An adapter in one drawing that fills its pictures in any order."""

    def __init__(self, faid: Faid, model: MaskedBackbone, device: torch.device) -> None:
        self.faid, self.model = faid, model
        self.prompt = FaidHook(faid.adapter.by_layer, faid.adapter.gen_head, faid.strength)
        """For prompts and the unconditional stream: blenders receive nothing there."""
        self.slots = slot_table(model.grid, faid.adapter.config.hops, device, "masked")

    def at(self, codes: Tensor, active: Tensor, known: Tensor) -> FaidHook:
        """For a pass over pictures of which the tokens known [B, N] stand.

        Args:
            codes: Retrieved codes [B, N, K], -1 = none.
            active: [B, N] where retrieval runs: unknown positions.
        """
        if not active.any():
            return self.prompt
        work = masked_pass(self.model, self.slots, codes, active, known, self.model.picture_start)
        return replace(self.prompt, blending=work)


def masked_pass(
    model: Backbone, slots: Tensor, codes: Tensor, active: Tensor, known: Tensor, first: int
) -> MaskedPass:
    """The positions at which blenders work, with their candidates; see `MaskedBlending.at`."""
    rows, positions = active.nonzero(as_tuple=True)
    candidates = embed_candidates(model, codes[rows, positions])
    return MaskedPass(rows, positions, candidates, known, slots, first)


def embed_candidates(model: Backbone, codes: Tensor) -> Tensor:
    """Embeddings [..., hidden] of retrieved codes [...]; zero where the code is -1, nothing."""
    found = (codes >= 0)[..., None]
    embedded = model.embed_codes(codes.clamp(min=0))
    return embedded * found.to(embedded.dtype)


def whole_picture(
    model: Backbone,
    adapter: FaidAdapter,
    codes: Tensor,
    active: Tensor,
    prompt_length: int,
    semantics: Semantics = "step",
    rows: Tensor | None = None,
    checkpointing: bool = False,
) -> FaidHook:
    """The adapter in one pass over prompts and whole pictures [B, N] at once, as in training.

    Args:
        codes: Retrieved codes [B, N, K], -1 = none.
        active: [N] or [B, N] where retrieval runs.
        rows: [B] 1 or 0, which pictures the blenders work on; all when absent.
        checkpointing: Compute layers again for the gradient.
    """
    batch, size, _ = codes.shape
    positions = torch.arange(size, device=codes.device).expand(batch, -1)
    work = BlendPass(
        positions,
        embed_candidates(model, codes.masked_fill(~active[..., None], -1)),
        active.expand(batch, -1),
        slot_table(model.grid, adapter.config.hops, codes.device),
        first=prompt_length - 1,
        semantics=semantics,
        rows=rows,
    )
    return FaidHook(adapter.by_layer, adapter.gen_head, blending=work, checkpointing=checkpointing)


def masked_picture(
    model: Backbone,
    adapter: FaidAdapter,
    codes: Tensor,
    active: Tensor,
    known: Tensor,
    first: int,
    checkpointing: bool = False,
) -> FaidHook:
    """The same for a model that fills its grid in any order.

    Args:
        codes: Retrieved codes [B, N, K], -1 = none.
        active: [B, N] where retrieval runs: unknown positions.
        known: [B, N] which tokens stand.
        first: The pass's input that is position 0.
    """
    slots = slot_table(model.grid, adapter.config.hops, codes.device, "masked")
    work = masked_pass(model, slots, codes, active, known, first)
    return FaidHook(adapter.by_layer, adapter.gen_head, blending=work, checkpointing=checkpointing)


def forced_states(
    model: JanusPro,
    text: Tensor,
    tokens: Tensor,
    hook: DrawingHook | None = None,
    padding: Sequence[int] | None = None,
) -> Tensor:
    """Hidden states [B, T + N, hidden] of prompts [B, T] and their pictures' tokens [B, N].

    Token i is predicted at T - 1 + i.
    """
    x = torch.cat((model.embed_text(text), model.embed_codes(tokens)), dim=1)
    return model.llama(x, None, None, hook, padding)
