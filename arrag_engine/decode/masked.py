"""Drawing in any order: a few passes, each of which fills the positions the model is surest of.

The loop of MaskGIT and Show-o. In every step the model predicts all tokens that are not known yet,
each is drawn, and those with the highest confidence stay. Retrieval joins where a neighbour is
known: the distribution is mixed before the draw. The confidence is the mixture's, or, where the
schedule says so, the model's own. An adapter receives what is retrieved in the conditional stream
of the same pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..faid import FaidHook, MaskedBlending
from ..grid import Grid, beside, neighbor_table
from ..models.base import MaskedBackbone
from ..retrieval import Asked, FoundByLayers, Layers
from ..settings import Schedule
from .canvas import Canvas, begin_all
from .masked_passes import open_masked
from .passes import check_adapter, check_lengths, fill_candidates
from .recipe import Drawing, Progress, Recipe
from .recorded import KeptPasses
from .step_noise import StepNoise, draw_by_sum, step_noise
from .trace import Cost, make_trace

LEAST = 1e-20
"""The logarithm of nothing smaller is taken."""
FAR = 1e6
"""What the confidence of a token away from the known ones loses in a picture that grows: more than
confidences differ by. They keep their order among each other."""
LEAST_SHARE = 1e-6
"""Of unknown tokens, by all curves but the cosine."""


@torch.inference_mode()
def draw_masked(
    model: MaskedBackbone,
    recipe: Recipe,
    seeds: Sequence[int],
    progress: Progress | None = None,
    device: torch.device | None = None,
    kept: KeptPasses | None = None,
) -> Drawing:
    """Draw one picture per seed; see `draw_pictures`.

    Raises:
        InputError: An adapter of a model that draws in raster order; a prompt that leaves no room
            for the picture; tokens to keep that do not fit.
    """
    check_masked(model, recipe, len(seeds))
    grid = model.grid
    started = time.perf_counter()
    device = device or model.device
    canvases = begin_all(seeds, grid.size, recipe.kept)
    known = np.stack([canvas.kept for canvas in canvases])
    searched, faid = recipe.searched(), recipe.adapter
    blending = None if faid is None else MaskedBlending(faid, model, device)
    added = None if blending is None else blending.prompt
    passes = open_masked(model, recipe, len(seeds), device, kept, added)
    steps = 0 if known.all() else recipe.schedule.steps
    try:
        for step in range(steps):
            found = look_up(searched, canvases, known)
            hook = None if blending is None else adapted(blending, canvases, found, known)
            p_model = passes.predict(canvases, known, hook)
            p = mixed(p_model, searched, found)
            for i, canvas in enumerate(canvases):
                stands = fill(canvas, p_model[i], p[i], known[i], recipe, step, grid)
                known[i] = canvas.kept | stands
            if progress is not None:
                done = int(known.sum(1).min()) if step + 1 < steps else grid.size
                progress(done, np.stack([canvas.tokens for canvas in canvases]))
    finally:
        passes.close()
    for canvas in canvases:
        canvas.recall()
    tokens = torch.from_numpy(np.stack([canvas.tokens for canvas in canvases]))
    cost, layers = Cost(steps, time.perf_counter() - started), recipe.retrieval()
    tracers = [
        partial(make_trace, grid, layers, canvas, model.vocab, cost, complete=False)
        for canvas in canvases
    ]
    return Drawing(tokens.view(-1, grid.height, grid.width), steps, tracers, passes.notes)


def check_masked(model: MaskedBackbone, recipe: Recipe, pictures: int) -> None:
    """Refuse what cannot be drawn; see `draw_masked`."""
    check_adapter(model, recipe)
    faid = recipe.adapter
    if faid is not None and faid.semantics != "step":
        raise InputError(
            f"semantics is {faid.semantics}, but blenders of a model that draws in "
            f"{model.order.name} work only where retrieval runs; choose step"
        )
    if recipe.kept is not None:
        recipe.kept.check_fits(model.grid.size, model.vocab, pictures)
    check_lengths(model, recipe)


@dataclass(frozen=True, eq=False)
class LookedUp:
    """What was found for positions [P] of a picture."""

    positions: np.ndarray
    found: FoundByLayers


def look_up(layers: Layers, canvases: Sequence[Canvas], known: np.ndarray) -> list[LookedUp]:
    """What is found for the unknown positions of each picture that have a known neighbour, by one
    look-up; nothing, if there are none. It is kept in `Canvas.found`.

    Args:
        known: Mask [B, N].
    """
    if not any(layer.neighbours for layer in layers.each):
        return []
    asked = [
        Asked(canvas.tokens, np.flatnonzero(layers.informed(mask) & ~mask), mask)
        for canvas, mask in zip(canvases, known, strict=True)
    ]
    if not any(len(one.positions) for one in asked):
        return []
    found, first, looked_up = layers.find(asked), 0, []
    for canvas, one in zip(canvases, asked, strict=True):
        own = found.part(first, len(one.positions))
        first += own.count
        places = zip(repeat(own), range(own.count), strict=False)
        canvas.found.update(zip(one.positions.tolist(), places, strict=True))
        looked_up.append(LookedUp(one.positions, own))
    return looked_up


def adapted(
    blending: MaskedBlending,
    canvases: Sequence[Canvas],
    looked_up: Sequence[LookedUp],
    known: np.ndarray,
) -> FaidHook:
    """What an adapter adds to a pass: its blenders receive the nearest hits' codes."""
    device = blending.slots.device
    codes = np.full((*known.shape, blending.faid.wanted), -1)
    active = np.zeros_like(known)
    for row, one in enumerate(looked_up if blending.faid.wanted else ()):
        canvases[row].recall()
        places = (slice(row, row + 1), one.positions)
        found = codes[places]
        active[places] = fill_candidates(found, [canvases[row]], one.positions[None])
        codes[places] = found
    return blending.at(*(torch.from_numpy(a).to(device) for a in (codes, active, known)))


def mixed(p_model: Tensor, layers: Layers, looked_up: Sequence[LookedUp]) -> Tensor:
    """p [B, N, vocab] of p_model: mixed with what was found."""
    if not looked_up or not layers.largest_weights.any():
        return p_model
    p = p_model.clone()
    for row, one in zip(p, looked_up, strict=True):
        mix_in(row, layers, one.found, one.positions)
    return p


def mix_in(p: Tensor, layers: Layers, found: FoundByLayers, positions: np.ndarray) -> None:
    """Mix what was found for positions [P] of a picture into its p [N, vocab], all at once."""
    if found.count == 0:
        return
    weights, proposed = layers.proposed(found, positions, p.shape[-1], p.device)
    places = torch.from_numpy(positions).to(p.device)
    rest = torch.from_numpy((1 - weights).astype(np.float32)).to(p.device)
    p[places] = rest[:, None] * p[places] + proposed


def fill(
    canvas: Canvas,
    p_model: Tensor,
    p: Tensor,
    known: np.ndarray,
    recipe: Recipe,
    step: int,
    grid: Grid,
) -> np.ndarray:
    """Draw a picture's unknown tokens from p [N, vocab]; the mask [N] of those that stand now.

    Args:
        p_model: [N, vocab], for the trace.
        known: Mask [N] of the tokens that stood before.
    """
    if known.all():  # kept, in a batch with others that are drawn
        return known
    noise = None if recipe.sampling.greedy else step_noise(canvas.seed, step, canvas.size)
    drawn = draw_unknown(canvas, p, known, noise)
    unknown = np.flatnonzero(~known)
    modelled = of_tokens(p_model, canvas.tokens)
    canvas.p_model[unknown] = modelled[unknown]
    sure = modelled if recipe.schedule.confidence == "model" else drawn
    near = None
    if recipe.schedule.grow and known.any():
        near = beside(neighbor_table(grid, "ring-8"), known)
    return stays(sure, known, recipe.schedule, step, noise, near)


def draw_unknown(
    canvas: Canvas, p: Tensor, known: np.ndarray, noise: StepNoise | None
) -> np.ndarray:
    """Draw every unknown token from p [N, vocab]; the probabilities [N] of a picture's tokens.

    Args:
        known: Mask [N] of the tokens that stand.
        noise: Without it, the most probable tokens are taken.
    """
    unknown = np.flatnonzero(~known)
    rows = p[torch.from_numpy(unknown).to(p.device)]
    if noise is None:
        canvas.tokens[unknown] = rows.argmax(dim=-1).cpu().numpy()
    else:
        canvas.tokens[unknown] = draw_by_sum(rows, noise.draw[unknown])
    return of_tokens(p, canvas.tokens)


def of_tokens(p: Tensor, tokens: np.ndarray) -> np.ndarray:
    """The probabilities [N] of tokens [N] in p [N, vocab]."""
    return p.gather(1, torch.from_numpy(tokens).to(p.device)[:, None])[:, 0].cpu().numpy()


def stays(
    drawn: np.ndarray,
    known: np.ndarray,
    schedule: Schedule,
    step: int,
    noise: StepNoise | None,
    near: np.ndarray | None = None,
) -> np.ndarray:
    """Mask [N] of the tokens that stand after a step: those known before, and the surest new ones.

    At temperatures above 4, the noise may take known ones away again, as in the official program.

    Args:
        drawn: Probabilities [N] of the tokens.
        known: Mask [N] of those that stood before.
        near: Mask [N] of those that stay before all others, in a picture that grows.
    """
    if known.all():
        return known
    chosen = np.where(known, np.finfo(np.float32).max, drawn)
    sure = confidence(chosen, noise, temperature_of(schedule, step))
    if near is not None:
        sure = np.where(near | known, sure, sure.astype(np.float64) - FAR)
    count = masked_count(schedule, step, len(known), int((~known).sum()))
    return sure >= np.partition(sure, count)[count]


def confidence(chosen: np.ndarray, noise: StepNoise | None, temperature: float) -> np.ndarray:
    """ln p + temperature · Gumbel noise [N] float32 of the probabilities [N] of drawn tokens."""
    log_p = np.log(np.maximum(chosen, np.float32(LEAST)))
    if noise is None:
        return log_p
    return log_p + np.float32(temperature) * gumbel(noise.keep)


def gumbel(uniforms: np.ndarray) -> np.ndarray:
    """Gumbel noise [N] float32 of uniforms [N]."""
    values = -np.log(np.maximum(-np.log(np.maximum(uniforms, LEAST)), LEAST))
    return values.astype(np.float32)


def masked_count(schedule: Schedule, step: int, size: int, unknown: int) -> int:
    """How many tokens are unknown after a step.

    In float32, as the models were trained: another precision gives another count at some steps.
    """
    share = masked_share(schedule, step)
    return max(1, min(unknown - 1, math.floor(np.float32(size) * share)))


def masked_share(schedule: Schedule, step: int) -> np.float32:
    """Share of the tokens that is unknown after a step, in float32."""
    t = np.float32((step + 1) / schedule.steps)
    if schedule.curve == "cosine":
        return np.cos(t * np.float32(math.pi / 2))
    if schedule.curve == "sigmoid":
        return _clipped(_sigmoid_share(t, schedule.sigmoid))
    power = 1.0 if schedule.curve == "linear" else schedule.power
    return _clipped(1 - t ** np.float32(power))


def _sigmoid_share(t: np.float32, sigmoid: tuple[float, float, float]) -> np.float32:
    """How much of the way down from its start to its end a sigmoid still has to go."""
    start, end, width = map(np.float32, sigmoid)
    points = np.array([start, t * (end - start) + start, end], np.float32) / width
    first, here, last = 1 / (1 + np.exp(-points))
    return (last - here) / (last - first)


def _clipped(share: np.float32) -> np.float32:
    return np.clip(share, np.float32(LEAST_SHARE), np.float32(1))


def temperature_of(schedule: Schedule, step: int) -> float:
    """Of the confidence: it falls to 0, each step by its own share of what is left."""
    done = ((k + 1) / schedule.steps for k in range(step + 1))
    return schedule.temperature * math.prod(1 - share for share in done)
