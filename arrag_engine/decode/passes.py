"""The model's passes of one drawing in raster order: the prompt once, then any span of each
picture.

A pass chooses the tokens of all its positions from the model's distribution. This is the pass of a
CPU, where the number of positions is free and a row has the same bits in any company; `fixed.py`
has the pass of a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..faid import Blending, FaidHook, order_for, order_name
from ..models.base import Backbone, RasterBackbone
from ..retrieval import nearest_codes
from ..sampling import guide, model_distribution
from .canvas import Canvas
from .choice import Chooser, Draft
from .recipe import Recipe


@dataclass(frozen=True)
class Chosen:
    """What a pass makes of a picture's positions from the first uncached one on."""

    tokens: np.ndarray
    """[P] int64: those that stand, then each as it follows if the drafts before it are right."""
    p_model: np.ndarray
    """[P] their probabilities under the model."""


class Passes(Protocol):
    """What the loop in `raster.py` asks of the passes of a drawing."""

    count: int
    """Passes that ran, without the prompt's."""
    notes: tuple[str, ...]
    """Sentences for the person."""

    def reach(self, canvas: Canvas, window: int) -> int:
        """The position that the next pass ends before."""
        ...

    def close(self) -> None:
        """End the drawing, finished or not."""
        ...

    def run(self, canvases: Sequence[Canvas], drafts: Sequence[Sequence[Draft]]) -> list[Chosen]:
        """One pass over each picture's positions cached .. decided + drafts - 1.

        Raises:
            InputError: The logits are not numbers.
        """
        ...


class ExactPasses:
    """Passes over B pictures, one stream or two with guidance, and their key/value cache.

    Args:
        batch: B.
        device: Where the model computes.
    """

    def __init__(
        self,
        model: RasterBackbone,
        recipe: Recipe,
        batch: int,
        device: torch.device,
        chooser: Chooser,
    ) -> None:
        self.model, self.device = model, device
        faid = recipe.adapter
        self.blending = None if faid is None else Blending(faid, model, batch, device)
        self.sampling, self.chooser = recipe.sampling, chooser
        self.count, self.notes = 0, ()
        self.size = model.grid.size
        # The last id of a prompt is the input of position 0.
        self.starts = [len(ids) - 1 for ids in recipe.streams for _ in range(batch)]
        self.streams = len(recipe.streams)
        self.cache = model.new_cache(len(self.starts), max(self.starts) + self.size, device)
        last = torch.tensor(recipe.prompt[-1], device=device)
        self.opening = model.embed_text(last)  # [hidden]
        self._prefill(prompt_groups(recipe, device), batch)

    def _prefill(self, groups: Sequence[Tensor], batch: int) -> None:
        """Run all but the last id of each prompt into the cache.

        All pictures share the prompts, so each is run once and copied.
        """
        hook, first = None if self.blending is None else self.blending.prompt, 0
        for ids in groups:
            if ids.shape[1] > 1:
                x = self.model.embed_text(ids[:, :-1])  # [rows, T - 1, hidden]
                self.model.prefill(x, self.cache, batch, hook, first)
            first += batch * len(ids)

    def close(self) -> None:
        pass  # nothing outlives the drawing

    def reach(self, canvas: Canvas, window: int) -> int:
        return min(canvas.decided + window, canvas.size)

    def run(self, canvases: Sequence[Canvas], drafts: Sequence[Sequence[Draft]]) -> list[Chosen]:
        ends = [c.decided + len(mine) for c, mine in zip(canvases, drafts, strict=True)]
        rows = self.logits(canvases, ends)
        self.count += 1
        return [
            self._choose(canvas, mine, model_distribution(logits, self.sampling))
            for canvas, mine, logits in zip(canvases, drafts, rows, strict=True)
        ]

    def _choose(self, canvas: Canvas, drafts: Sequence[Draft], p_model: Tensor) -> Chosen:
        """The tokens of positions with p_model [P, vocab]."""
        standing = canvas.decided - canvas.cached
        tokens = canvas.tokens[canvas.cached : canvas.cached + len(p_model)].copy()
        for i, draft in enumerate(drafts, standing):
            tokens[i] = self.chooser.choose(draft, canvas.cached + i, p_model[i])
        return Chosen(tokens, p_model[np.arange(len(tokens)), tokens].numpy())

    def logits(self, canvases: Sequence[Canvas], ends: Sequence[int]) -> list[Tensor]:
        """Guided logits of each picture's positions cached .. end - 1 [.., vocab], on the CPU.

        Pictures stand at different positions; one with fewer inputs, or a finished one, starts
        further back, which only writes the same keys and values again.
        """
        length = max(end - c.cached for c, end in zip(canvases, ends, strict=True))
        firsts = [min(c.cached, self.size - length) for c in canvases]
        inputs = torch.stack(
            [self._inputs(c.tokens, a, length) for c, a in zip(canvases, firsts, strict=True)]
        )
        starts = [a + b for a, b in zip(self.starts, firsts * self.streams, strict=True)]
        hook = self._hook(canvases, firsts, length)
        logits = self.model.logits(inputs.repeat(self.streams, 1, 1), starts, self.cache, hook)
        guided = guide(logits, self.sampling.cfg).cpu()  # [B, L, vocab]
        if not guided.isfinite().all():
            raise InputError(not_numbers(self.model))
        spans = zip(canvases, firsts, ends, guided, strict=True)
        return [rows[c.cached - first : end - first] for c, first, end, rows in spans]

    def _inputs(self, tokens: np.ndarray, first: int, length: int) -> Tensor:
        """Input embeddings [L, hidden] that predict positions first .. first + L - 1."""
        before = tokens[max(first - 1, 0) : first + length - 1]
        x = self.model.embed_codes(torch.from_numpy(before).to(self.device))
        return torch.cat((self.opening[None], x)) if first == 0 else x

    def _hook(
        self, canvases: Sequence[Canvas], firsts: Sequence[int], length: int
    ) -> FaidHook | None:
        """What the adapter adds to a pass: its blenders receive the nearest hits' codes."""
        if self.blending is None:
            return None
        positions = np.array(firsts)[:, None] + np.arange(length)  # [B, L]
        codes = np.full((*positions.shape, self.blending.faid.wanted), -1)
        active = fill_candidates(codes, canvases, positions)
        places, received, runs = (
            torch.from_numpy(a).to(self.device) for a in (positions, codes, active)
        )
        return self.blending.at(places, received, runs)


def fill_candidates(
    codes: np.ndarray, canvases: Sequence[Canvas], positions: np.ndarray
) -> np.ndarray:
    """Put the nearest hits' codes of positions [B, L] into codes [B, L, K]; the mask [B, L] of
    those that are looked up."""
    active = np.zeros(positions.shape, dtype=bool)
    for (row, column), position in np.ndenumerate(positions):
        proposals = canvases[row].proposals.get(int(position))
        if proposals is not None and any(one is not None for one in proposals):
            nearest = nearest_codes(proposals, codes.shape[-1])
            codes[row, column, : len(nearest)] = nearest
            active[row, column] = True
    return active


def prompt_groups(recipe: Recipe, device: torch.device) -> list[Tensor]:
    """Text ids [rows, T] of the streams, in order: those of one length run together, and one of
    another length alone, without padding and mask."""
    alike = len(set(map(len, recipe.streams))) == 1
    groups = [recipe.streams] if alike else [[ids] for ids in recipe.streams]
    return [torch.tensor(rows, device=device) for rows in groups]


def check_lengths(model: Backbone, recipe: Recipe) -> None:
    """Refuse prompts that leave no room for the picture.

    Raises:
        InputError: One is too long.
    """
    size, limit = model.grid.size, model.max_positions
    for name, ids in zip(("prompt", "negative prompt"), recipe.streams, strict=False):
        if len(ids) + size > limit:
            raise InputError(
                f"the {name} has {len(ids)} tokens and the picture {size}, the model takes {limit} "
                f"together; shorten the {name}"
            )


def check_adapter(model: Backbone, recipe: Recipe) -> None:
    """Refuse an adapter of another family of models.

    Raises:
        InputError: It is one.
    """
    if recipe.faid is None:
        return
    order = recipe.faid.adapter.config.order
    if order != order_for(model.order):
        raise InputError(
            f"the adapter is for models that draw in {order_name(order)}, this one draws in "
            f"{model.order.name}; choose an adapter that was trained on this model"
        )


def not_numbers(model: Backbone) -> str:
    """What to say of logits that are not numbers."""
    return (
        f"the model's logits are not numbers in {model.dtype}; load it as bf16 or fp32, or "
        "download its weights again"
    )
