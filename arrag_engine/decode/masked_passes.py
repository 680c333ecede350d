"""The model's passes of one drawing in any order: the prompts once, then the whole picture each
time.

On a CPU each stream sees its own prompt at its own length. On a GPU a pass has a fixed shape: the
prompts lie in buffers, padded to one length behind a mask, and the pass is recorded and kept, as in
`fixed.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..faid import FaidHook
from ..models.base import MaskedBackbone
from ..sampling import guide, model_distribution, shape_distribution
from .canvas import Canvas
from .graphs import GraphRecorder
from .packet import Packet
from .passes import not_numbers, prompt_groups
from .recipe import Recipe
from .recorded import STEP, KeptPasses, RecordedPass


class MaskedPasses(Protocol):
    """What the loop in `masked.py` asks of the passes of a drawing."""

    notes: tuple[str, ...]
    """Sentences for the person."""

    def predict(
        self, canvases: Sequence[Canvas], known: np.ndarray, hook: FaidHook | None = None
    ) -> Tensor:
        """p_model [B, N, vocab] where the model computes, given the known tokens of each picture;
        it stands until the next pass.

        Args:
            known: Mask [B, N].
            hook: What an adapter adds, where the drawing has one.

        Raises:
            InputError: The logits are not numbers.
        """
        ...

    def close(self) -> None:
        """End the drawing, finished or not."""
        ...


def open_prompts(
    model: MaskedBackbone, recipe: Recipe, device: torch.device, hook: FaidHook | None = None
) -> list[tuple[int, Any]]:
    """How many streams the prompts of each group have, and what the model keeps of them.

    Args:
        hook: What an adapter adds to prompts.
    """
    return [(len(ids), model.open(ids, hook)) for ids in prompt_groups(recipe, device)]


def predict(
    model: MaskedBackbone,
    opened: Sequence[tuple[int, Any]],
    recipe: Recipe,
    canvases: Sequence[Canvas],
    known: np.ndarray,
    device: torch.device,
    hook: FaidHook | None = None,
) -> Tensor:
    """p_model [B, N, vocab] where the model computes, given the known tokens of each picture.

    Args:
        opened: As `open_prompts` returned it.
        known: Mask [B, N].
        hook: What an adapter adds, to the first stream with its blenders.

    Raises:
        InputError: The logits are not numbers.
    """
    tokens = torch.from_numpy(np.stack([canvas.tokens for canvas in canvases])).to(device)
    stand = torch.from_numpy(known).to(device)
    logits = []
    for streams, prompts in opened:
        rows = (tokens.repeat(streams, 1), stand.repeat(streams, 1))
        logits.append(model.masked_logits(prompts, *rows, hook))
        hook = None if hook is None else replace(hook, blending=None)
    guided = guide(torch.cat(logits), recipe.sampling.cfg)
    if not guided.isfinite().all():
        raise InputError(not_numbers(model))
    return model_distribution(guided, recipe.sampling)


class ExactMasked:
    """Passes that leave nothing behind."""

    def __init__(
        self,
        model: MaskedBackbone,
        recipe: Recipe,
        device: torch.device,
        added: FaidHook | None = None,
    ) -> None:
        """
        Args:
            added: What an adapter adds to prompts.
        """
        self.model, self.recipe, self.device = model, recipe, device
        self.notes: tuple[str, ...] = ()
        self.opened = open_prompts(model, recipe, device, added)

    def close(self) -> None:
        pass  # nothing outlives the drawing

    def predict(
        self, canvases: Sequence[Canvas], known: np.ndarray, hook: FaidHook | None = None
    ) -> Tensor:
        return predict(self.model, self.opened, self.recipe, canvases, known, self.device, hook)


@dataclass(frozen=True)
class MaskedShape:
    """All that two drawings must have in common to use the same pass."""

    batch: int
    streams: int
    capacity: int
    """Ids that fit a stream: the prompt's, the picture's, and unused ones."""
    dtype: torch.dtype
    device: torch.device
    top_k: bool
    top_p: bool


def masked_shape(
    model: MaskedBackbone, recipe: Recipe, batch: int, device: torch.device
) -> MaskedShape:
    """The shape of the passes of a drawing."""
    sampling = recipe.sampling
    return MaskedShape(
        batch,
        len(recipe.streams),
        -(-(recipe.longest + model.picture_length) // STEP) * STEP,
        model.dtype,
        device,
        0 < sampling.top_k < model.vocab,
        sampling.top_p < 1,
    )


class FixedMasked(RecordedPass):
    """A pass over whole pictures with its buffers. `begin` starts a drawing, `run` repeats it.

    Made and used under inference mode.
    """

    def __init__(self, model: MaskedBackbone, recipe: Recipe, shape: MaskedShape) -> None:
        super().__init__(model, shape)
        self.model, self.shape = model, shape
        picture, device = (shape.batch, model.grid.size), shape.device
        rows = shape.streams * shape.batch
        self.opened = model.new_opened(rows, shape.capacity, device)
        names = ("temperature", "cfg", "top_p")
        self.numbers = Packet({name: () for name in names}, torch.float32, device)
        sizes = {"tokens": picture, "known": picture, "top_k": ()}
        self.sent = Packet(sizes, torch.int64, device)
        self.p_model = torch.zeros(*picture, model.vocab, device=device)
        """[B, N, vocab]: what a pass leaves."""
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        """Whether the guided logits were numbers."""

    def begin(self, recipe: Recipe) -> None:
        """Start a drawing: run the prompts and put what the model keeps of them into buffers."""
        sampling, numbers = recipe.sampling, self.numbers.host
        numbers["temperature"][...] = sampling.temperature or 1.0
        numbers["cfg"][...], numbers["top_p"][...] = sampling.cfg, sampling.top_p
        self.numbers.send()
        self.sent.host["top_k"][...] = sampling.top_k
        first = 0
        for ids in prompt_groups(recipe, self.shape.device):
            self.opened.write(self.model.open(ids), first, self.shape.batch)
            first += self.shape.batch * len(ids)

    def run(self, tokens: np.ndarray, known: np.ndarray) -> Tensor:
        """p_model [B, N, vocab] of pictures with tokens [B, N], of which those with known stand."""
        self.sent.host["tokens"][...] = tokens
        self.sent.host["known"][...] = known
        self.sent.send()
        self.repeat()
        if not self.finite.item():
            raise InputError(not_numbers(self.model))
        return self.p_model

    def compute(self) -> None:
        sent, numbers, shape = self.sent.device, self.numbers.device, self.shape
        tokens, known = sent["tokens"], sent["known"].bool()
        rows = (part.repeat(shape.streams, 1) for part in (tokens, known))
        logits = self.model.masked_logits(self.opened, *rows)
        guided = guide(logits, 1.0 if shape.streams == 1 else numbers["cfg"])
        self.finite.copy_(guided.isfinite().all())
        p_model = shape_distribution(
            guided,
            numbers["temperature"],
            sent["top_k"] if shape.top_k else None,
            numbers["top_p"] if shape.top_p else None,
        )
        self.p_model.copy_(p_model)


class RepeatedMasked:
    """The passes of one drawing by a pass that is kept."""

    def __init__(self, kept: KeptPasses, one: FixedMasked, note: str | None) -> None:
        self.kept, self.one = kept, one
        self.notes = () if note is None else (note,)

    def close(self) -> None:
        self.kept.give_back(self.one)

    def predict(
        self, canvases: Sequence[Canvas], known: np.ndarray, hook: FaidHook | None = None
    ) -> Tensor:
        assert hook is None, "a pass of fixed shape has no adapter"
        return self.one.run(np.stack([canvas.tokens for canvas in canvases]), known)


def open_masked(
    model: MaskedBackbone,
    recipe: Recipe,
    batch: int,
    device: torch.device,
    kept: KeptPasses | None = None,
    added: FaidHook | None = None,
) -> MaskedPasses:
    """The passes of a drawing, after the prompts have run. One with an adapter is not recorded: how
    many positions its blenders work on changes from pass to pass.

    Args:
        kept: As for `draw_pictures`.
        added: What an adapter adds to prompts.
    """
    if added is not None or not model.repeats or (device.type == "cpu" and kept is None):
        return ExactMasked(model, recipe, device, added)
    kept = KeptPasses(GraphRecorder()) if kept is None else kept
    shape = masked_shape(model, recipe, batch, device)
    one = kept.take(FixedMasked, model, recipe, shape)
    note = None if kept.recorder is None else one.record(kept.recorder)
    one.begin(recipe)
    return RepeatedMasked(kept, one, note)
