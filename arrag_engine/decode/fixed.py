"""A pass of fixed shape: what a GPU repeats without waiting for Python.

Every pass covers `width` positions of each picture, reads the whole key/value cache behind a mask,
and draws its tokens on the device. The host sends a few numbers and reads, for each position, a
token and its probability. The first token comes from the prompt's own pass. Where a token is
decided already, or drawn by retrieval alone, the host sends it; its keys and values are written
like all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..faid import Blending
from ..models.base import Backbone, RasterBackbone
from ..sampling import guide, model_distribution, shape_distribution
from .canvas import Canvas
from .choice import Chooser, Draft
from .device_noise import PLACES, NoiseSlab
from .graphs import GraphRecorder
from .packet import Packet
from .passes import Chosen, fill_candidates, not_numbers, prompt_groups
from .recipe import Recipe
from .recorded import STEP, KeptPasses, RecordedPass

WIDTH = 16
"""Positions of a pass in 16 bit, whatever the window: another width would round differently."""


@dataclass(frozen=True)
class Shape:
    """All that two drawings must have in common to use the same pass. Whatever else differs between
    them is a number on the device."""

    batch: int
    streams: int
    width: int
    capacity: int
    dtype: torch.dtype
    device: torch.device
    greedy: bool
    """Tokens are taken without noise."""
    top_k: bool
    top_p: bool
    proposals: int = 0
    """Retrieved codes that are mixed with the model's distribution at a position; 0 with noise,
    where the host chooses the component."""
    candidates: int = 0
    """Retrieved codes that the adapter receives at a position."""
    semantics: str = ""
    whole: bool = True
    """Whether the adapter works at strength 1, so that the model's own head is not asked."""


def pass_width(model: Backbone, window: int) -> int:
    """Positions of a pass of fixed shape."""
    width = window if model.dtype == torch.float32 else WIDTH
    return max(1, min(width, model.grid.size - 1))


def shape_of(
    model: RasterBackbone, recipe: Recipe, batch: int, window: int, device: torch.device
) -> Shape:
    """The shape of the passes of a drawing."""
    sampling, faid = recipe.sampling, recipe.adapter
    proposals = 0
    if sampling.greedy:
        neighbors = sum(one.options.neighbours for one in recipe.layers if one.largest_weight > 0)
        proposals = min(neighbors, model.vocab)
    length = recipe.longest - 1 + model.grid.size
    return Shape(
        batch,
        len(recipe.streams),
        pass_width(model, window),
        -(-length // STEP) * STEP,
        model.dtype,
        device,
        sampling.greedy,
        0 < sampling.top_k < model.vocab,
        sampling.top_p < 1,
        proposals,
        0 if faid is None else faid.wanted,
        "" if faid is None else faid.semantics,
        faid is None or faid.strength == 1,
    )


class FixedPass(RecordedPass):
    """A pass of one shape with its buffers. `begin` starts a drawing, `run` repeats the pass.

    Made and used under inference mode.
    """

    def __init__(self, model: RasterBackbone, recipe: Recipe, shape: Shape) -> None:
        super().__init__(model, shape)
        self.model, self.shape = model, shape
        batch, width, device = shape.batch, shape.width, shape.device
        self.blending: Blending | None = None
        self.cache = model.new_cache(shape.streams * batch, shape.capacity, device)
        self.numbers = Packet(
            {name: () for name in ("temperature", "cfg", "top_p", "strength")},
            torch.float32,
            device,
        )
        window, places = (batch, width), (batch, width, shape.candidates)
        mixed = (batch, width, shape.proposals)
        self.sent = Packet(
            {
                **{"before": (shape.streams * batch,), "top_k": (), "first": (batch,)},
                **{"inputs": window, "given": window},
                **{"codes": places, "active": window, "proposed": mixed},
            },
            torch.int64,
            device,
        )
        self.shares = Packet({"shares": mixed, "weight": window}, torch.float32, device)
        self.places = torch.arange(width, device=device)
        self.noise = None
        if not shape.greedy:
            places = max(PLACES, width)
            self.noise = NoiseSlab(batch, model.grid.size, model.vocab, device, places)
        if (faid := recipe.adapter) is not None:
            strength = None if shape.whole else self.numbers.device["strength"]
            self.adapter = faid.adapter
            self.blending = Blending(faid, model, batch, device, strength)
        self.drawn = torch.zeros(2, batch, width, dtype=torch.int32, device=device)
        """What a pass leaves: the tokens, and the bits of their probabilities under the model."""

    def begin(self, recipe: Recipe, seeds: Sequence[int]) -> Tensor:
        """Start a drawing; p_model [vocab] of position 0, on the CPU, from the prompt's pass."""
        sampling, numbers = recipe.sampling, self.numbers.host
        numbers["temperature"][...] = sampling.temperature or 1.0
        numbers["cfg"][...], numbers["top_p"][...] = sampling.cfg, sampling.top_p
        numbers["strength"][...] = 1.0 if recipe.faid is None else recipe.faid.strength
        self.numbers.send()
        # A token's input is the token before it: position p reads the sequence up to `before` + p.
        lengths = [len(ids) for ids in recipe.streams]
        self.sent.host["before"][:] = np.repeat(lengths, self.shape.batch) - 1
        self.sent.host["top_k"][...] = sampling.top_k
        self.cache.keys.zero_()  # what is masked is multiplied by 0, and must be a number
        self.cache.values.zero_()
        if self.noise is not None:
            self.noise.begin(seeds)
        logits = guide(self._opening_logits(recipe), sampling.cfg)[0].cpu()
        if not logits.isfinite().all():
            raise InputError(not_numbers(self.model))
        return model_distribution(logits, sampling)

    def _opening_logits(self, recipe: Recipe) -> Tensor:
        """Run the prompts into the cache; the logits [streams, vocab] of position 0."""
        hook, found, first = None, [], 0
        if self.blending is not None:
            self.blending.forget()
            hook = self.blending.opening(len(recipe.prompt))
        for ids in prompt_groups(recipe, self.shape.device):
            x = self.model.embed_text(ids)
            hidden = self.model.prefill(x, self.cache, self.shape.batch, hook, first)
            found.append(self.model.predict(hidden, hook))
            first += self.shape.batch * len(ids)
            # Blenders work in the conditional stream, which is in the first group.
            hook = None if self.blending is None else self.blending.prompt
        return torch.cat(found)

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [B, width] and their p_model [B, width] of what was sent."""
        self.sent.send()
        if self.shape.proposals:
            self.shares.send()
        if self.noise is not None:
            self.noise.hold(self.sent.host["first"].tolist(), self.shape.width)
        self.repeat()
        tokens, p = self.drawn.cpu().numpy()
        return tokens.astype(np.int64), p.view(np.float32)

    def compute(self) -> None:
        """The arithmetic of a pass, from buffers to buffers: nothing here waits for the device or
        depends on a number of the host, so that a graph may repeat it."""
        sent, numbers, shape = self.sent.device, self.numbers.device, self.shape
        positions = sent["first"][:, None] + self.places  # [B, width]
        x = self.model.embed_codes(sent["inputs"]).repeat(shape.streams, 1, 1)
        starts = sent["before"] + sent["first"].repeat(shape.streams)
        hook = None
        if self.blending is not None:
            hook = self.blending.at(positions, sent["codes"], sent["active"].bool())
        logits = self.model.logits(x, starts, self.cache, hook)
        guided = guide(logits, 1.0 if shape.streams == 1 else numbers["cfg"])
        p_model = shape_distribution(
            guided,
            numbers["temperature"],
            sent["top_k"] if shape.top_k else None,
            numbers["top_p"] if shape.top_p else None,
        )
        chosen = self._scores(p_model, positions).argmax(dim=-1)
        tokens = chosen.where(sent["given"] < 0, sent["given"])
        p = p_model.gather(-1, tokens[..., None])[..., 0]
        self.drawn[0] = tokens
        self.drawn[1] = p.view(torch.int32)

    def _scores(self, p_model: Tensor, positions: Tensor) -> Tensor:
        """Scores [B, width, vocab], of which the token has the largest: log p + noise, or the
        mixture."""
        if self.noise is not None:
            return p_model.log() + self.noise.at(positions)
        if not self.shape.proposals:
            return p_model
        weight = self.shares.device["weight"][..., None]
        proposed = torch.zeros_like(p_model)
        proposed.scatter_add_(-1, self.sent.device["proposed"], self.shares.device["shares"])
        return (1 - weight) * p_model + weight * proposed


class FixedPasses:
    """The passes of one drawing; see `passes.Passes`."""

    def __init__(
        self,
        kept: KeptPasses,
        one: FixedPass,
        chooser: Chooser,
        first: Tensor,
        note: str | None = None,
    ) -> None:
        self.kept, self.one, self.chooser = kept, one, chooser
        self.first = first
        """p_model [vocab] of position 0."""
        self.notes = () if note is None else (note,)
        self.count = 0

    def close(self) -> None:
        self.kept.give_back(self.one)

    def reach(self, canvas: Canvas, window: int) -> int:
        if canvas.cached == 0:
            return 1
        return min(canvas.cached + self.one.shape.width, canvas.decided + window, canvas.size)

    def run(self, canvases: Sequence[Canvas], drafts: Sequence[Sequence[Draft]]) -> list[Chosen]:
        if all(canvas.cached == 0 for canvas in canvases):
            return [self._open(c, mine) for c, mine in zip(canvases, drafts, strict=True)]
        width = self.one.shape.width
        firsts = [min(c.cached, c.size - width) for c in canvases]
        for row, (canvas, first, mine) in enumerate(zip(canvases, firsts, drafts, strict=True)):
            self._send(row, canvas, first, mine)
        if self.one.shape.candidates:
            positions = np.array(firsts)[:, None] + np.arange(width)
            codes = self.one.sent.host["codes"]
            codes[...] = -1
            self.one.sent.host["active"][...] = fill_candidates(codes, canvases, positions)
        tokens, p = self.one.run()
        if not np.isfinite(p).all():
            raise InputError(not_numbers(self.one.model))
        self.count += 1
        chosen = []
        for row, (canvas, first, mine) in enumerate(zip(canvases, firsts, drafts, strict=True)):
            span = slice(canvas.cached - first, min(canvas.decided + len(mine) - first, width))
            chosen.append(Chosen(tokens[row, span], p[row, span]))
        return chosen

    def _open(self, canvas: Canvas, drafts: Sequence[Draft]) -> Chosen:
        """Position 0."""
        token = int(canvas.tokens[0])
        if drafts:
            token = self.chooser.choose(drafts[0], 0, self.first)
        return Chosen(np.array([token]), self.first[token : token + 1].numpy())

    def _send(self, row: int, canvas: Canvas, first: int, drafts: Sequence[Draft]) -> None:
        """Write what a picture brings to a pass from position `first` on."""
        host, width = self.one.sent.host, self.one.shape.width
        host["first"][row] = first
        host["inputs"][row] = canvas.tokens[first - 1 : first - 1 + width]
        given = host["given"][row]
        given[...] = -1
        standing = min(canvas.decided - first, width)
        given[:standing] = canvas.tokens[first : first + standing]
        if self.one.shape.proposals:
            self.one.shares.host["weight"][row] = 0
        for place, draft in enumerate(drafts, canvas.decided - first):
            if draft.certain:
                given[place] = draft.token
            elif draft.proposals is not None:
                self._mix(row, place, draft, first + place)

    def _mix(self, row: int, place: int, draft: Draft, position: int) -> None:
        """Write the proposals that are mixed with the model's distribution at a place."""
        codes, shares, weight = self.chooser.proposed(draft, position)
        self.one.sent.host["proposed"][row, place] = 0
        self.one.sent.host["proposed"][row, place, : len(codes)] = codes
        self.one.shares.host["shares"][row, place] = 0
        self.one.shares.host["shares"][row, place, : len(codes)] = shares
        self.one.shares.host["weight"][row, place] = weight


def open_fixed(
    model: RasterBackbone,
    recipe: Recipe,
    canvases: Sequence[Canvas],
    window: int,
    device: torch.device,
    chooser: Chooser,
    kept: KeptPasses | None = None,
) -> FixedPasses:
    """The passes of a drawing, after the prompt's.

    Raises:
        InputError: The logits are not numbers.
    """
    shape = shape_of(model, recipe, len(canvases), window, device)
    kept = KeptPasses(GraphRecorder()) if kept is None else kept
    one = kept.take(FixedPass, model, recipe, shape)
    note = None if kept.recorder is None else one.record(kept.recorder)
    first = one.begin(recipe, [canvas.seed for canvas in canvases])
    return FixedPasses(kept, one, chooser, first, note)
