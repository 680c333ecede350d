"""The model's passes of one drawing: the prompt once, then any span of each picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..faid import Blending, FaidHook
from ..models.base import RasterBackbone
from ..sampling import guide
from .canvas import Canvas
from .recipe import Recipe


class Passes:
    """B pictures, one stream or two with guidance, and their key/value cache.

    Args:
        batch: B.
        device: Where the model computes.
        blending: The adapter at work, if there is one.
    """

    def __init__(
        self,
        model: RasterBackbone,
        recipe: Recipe,
        batch: int,
        device: torch.device,
        blending: Blending | None,
    ) -> None:
        self.model, self.device, self.blending = model, device, blending
        self.cfg = recipe.sampling.cfg
        self.streams = 1 if self.cfg == 1 else 2
        self.size = model.grid.size
        self.prefix = len(recipe.prompt) - 1  # the prompt's last id is the input of position 0
        self.cache = model.new_cache(self.streams * batch, self.prefix + self.size, device)
        self.opening = self._prefill(recipe, batch)

    def _prefill(self, recipe: Recipe, batch: int) -> Tensor:
        """Run all but the last prompt id into the cache; return the last one's embedding [hidden].

        All pictures share the prompt, so it is run once and copied.
        """
        ids = prompt_streams(recipe, self.device)[: self.streams]
        x = self.model.embed_text(ids)  # [streams, T, hidden]
        if self.prefix:
            hook = None if self.blending is None else self.blending.prompt
            self.model.prefill(x[:, :-1], self.cache, batch, hook)
        return x[0, -1]

    def run(self, canvases: Sequence[Canvas], ends: Sequence[int]) -> list[Tensor]:
        """Guided logits of each picture's positions cached .. end - 1 [.., vocab], on the CPU.

        Pictures stand at different positions; one with fewer inputs, or a finished one, starts
        further back, which only writes the same keys and values again.

        Raises:
            InputError: The logits are not numbers.
        """
        length = max(end - c.cached for c, end in zip(canvases, ends, strict=True))
        firsts = [min(c.cached, self.size - length) for c in canvases]
        inputs = torch.stack(
            [self._inputs(c.tokens, a, length) for c, a in zip(canvases, firsts, strict=True)]
        )
        starts = [self.prefix + first for first in firsts] * self.streams
        hook = self._hook(canvases, firsts, length)
        logits = self.model.logits(inputs.repeat(self.streams, 1, 1), starts, self.cache, hook)
        guided = guide(logits, self.cfg).cpu()  # [B, L, vocab]
        if not guided.isfinite().all():
            raise InputError(not_numbers(self.model.dtype))
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
        codes = np.full((*positions.shape, self.blending.candidates), -1)
        active = np.zeros(positions.shape, dtype=bool)
        for (row, column), position in np.ndenumerate(positions):
            proposal = canvases[row].proposals.get(int(position))
            if proposal is not None:
                nearest = proposal.hits.codes[0, : self.blending.candidates]
                codes[row, column, : len(nearest)] = nearest
                active[row, column] = True
        return self.blending.at(positions, codes, active)


def not_numbers(dtype: torch.dtype) -> str:
    """What to say of logits that are not numbers."""
    return (
        f"the model's logits are not numbers in {dtype}; load it as bf16 or fp32, or download its "
        "weights again"
    )


def prompt_streams(recipe: Recipe, device: torch.device) -> Tensor:
    """Text ids [2, T]: conditional, unconditional."""
    return torch.tensor([recipe.prompt, recipe.unconditional], device=device)


def attach(
    model: RasterBackbone, recipe: Recipe, batch: int, device: torch.device
) -> tuple[Recipe, Blending | None]:
    """(recipe whose retriever finds what the adapter needs, the adapter at work)."""
    faid = recipe.faid
    if faid is None or faid.strength == 0:
        return recipe, None
    blending = Blending(faid, model, batch, device)
    if recipe.retriever is not None:
        retriever = replace(recipe.retriever, candidates=blending.candidates)
        recipe = replace(recipe, retriever=retriever)
    return recipe, blending
