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
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..faid import FaidHook, MaskedBlending
from ..models.base import MaskedBackbone
from ..retrieval import Asked, Layers, Proposals
from ..sampling import guide, model_distribution
from ..settings import Schedule
from .canvas import Canvas, begin_all
from .passes import check_adapter, check_lengths, fill_candidates, not_numbers, prompt_groups
from .recipe import Drawing, Progress, Recipe
from .step_noise import StepNoise, draw_by_sum, step_noise
from .trace import Cost, make_trace

LEAST = 1e-20
"""The logarithm of nothing smaller is taken."""
LEAST_SHARE = 1e-6
"""Of unknown tokens, by all curves but the cosine."""


@torch.inference_mode()
def draw_masked(
    model: MaskedBackbone,
    recipe: Recipe,
    seeds: Sequence[int],
    progress: Progress | None = None,
    device: torch.device | None = None,
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
    opened = open_prompts(model, recipe, device, None if blending is None else blending.prompt)
    steps = 0 if known.all() else recipe.schedule.steps
    for step in range(steps):
        asked = look_up(searched, canvases, known)
        hook = None if blending is None else adapted(blending, canvases, asked, known)
        p_model = predict(model, opened, recipe, canvases, known, device, hook)
        p = mixed(p_model, searched, canvases, asked)
        for i, canvas in enumerate(canvases):
            known[i] = canvas.kept | fill(canvas, p_model[i], p[i], known[i], recipe, step)
        if progress is not None:
            done = int(known.sum(1).min()) if step + 1 < steps else grid.size
            progress(done, np.stack([canvas.tokens for canvas in canvases]))
    tokens = torch.from_numpy(np.stack([canvas.tokens for canvas in canvases]))
    cost, layers = Cost(steps, time.perf_counter() - started), recipe.retrieval()
    tracers = [
        partial(make_trace, grid, layers, canvas, model.vocab, cost, complete=False)
        for canvas in canvases
    ]
    return Drawing(tokens.view(-1, grid.height, grid.width), steps, tracers)


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


def open_prompts(
    model: MaskedBackbone, recipe: Recipe, device: torch.device, hook: FaidHook | None = None
) -> list[tuple[int, Any]]:
    """How many streams the prompts of each group have, and what the model keeps of them.

    Args:
        hook: What an adapter adds to prompts.
    """
    return [(len(ids), model.open(ids, hook)) for ids in prompt_groups(recipe, device)]


def look_up(layers: Layers, canvases: Sequence[Canvas], known: np.ndarray) -> list[Asked]:
    """The unknown positions of each picture that have a known neighbour, looked up all at once:
    what is found is in `Canvas.proposals`.

    Args:
        known: Mask [B, N].
    """
    if not any(layer.neighbours for layer in layers.each):
        return []
    asked = [
        Asked(canvas.tokens, np.flatnonzero(layers.informed(mask) & ~mask), mask)
        for canvas, mask in zip(canvases, known, strict=True)
    ]
    if any(len(one.positions) for one in asked):
        found = iter(layers.propose(asked))
        for canvas, one in zip(canvases, asked, strict=True):
            for position in one.positions.tolist():
                canvas.proposals[position] = next(found)
    return asked


def adapted(
    blending: MaskedBlending, canvases: Sequence[Canvas], asked: Sequence[Asked], known: np.ndarray
) -> FaidHook:
    """What an adapter adds to a pass: its blenders receive the nearest hits' codes."""
    device = blending.slots.device
    codes = np.full((*known.shape, blending.faid.wanted), -1)
    active = np.zeros_like(known)
    for row, one in enumerate(asked if blending.faid.wanted else ()):
        places = (slice(row, row + 1), one.positions)
        found = codes[places]
        active[places] = fill_candidates(found, [canvases[row]], one.positions[None])
        codes[places] = found
    return blending.at(*(torch.from_numpy(a).to(device) for a in (codes, active, known)))


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


def mixed(
    p_model: Tensor, layers: Layers, canvases: Sequence[Canvas], asked: Sequence[Asked]
) -> Tensor:
    """p [B, N, vocab] of p_model: mixed with what was found at the positions asked for."""
    if not asked or not layers.largest_weights.any():
        return p_model
    p = p_model.clone()
    for row, canvas, one in zip(p, canvases, asked, strict=True):
        found = [canvas.proposals[position] for position in one.positions.tolist()]
        mix_in(row, layers, found, one.positions)
    return p


def mix_in(p: Tensor, layers: Layers, found: Sequence[Proposals], positions: np.ndarray) -> None:
    """Mix what was found for positions [P] of a picture into its p [N, vocab], all at once."""
    if len(found) == 0:
        return
    weights, proposed = layers.proposed(found, positions, p.shape[-1], p.device)
    places = torch.from_numpy(positions).to(p.device)
    rest = torch.from_numpy((1 - weights).astype(np.float32)).to(p.device)
    p[places] = rest[:, None] * p[places] + proposed


def fill(
    canvas: Canvas, p_model: Tensor, p: Tensor, known: np.ndarray, recipe: Recipe, step: int
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
    return stays(sure, known, recipe.schedule, step, noise)


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
    drawn: np.ndarray, known: np.ndarray, schedule: Schedule, step: int, noise: StepNoise | None
) -> np.ndarray:
    """Mask [N] of the tokens that stand after a step: those known before, and the surest new ones.

    At temperatures above 4, the noise may take known ones away again, as in the official program.

    Args:
        drawn: Probabilities [N] of the tokens.
        known: Mask [N] of those that stood before.
    """
    if known.all():
        return known
    chosen = np.where(known, np.finfo(np.float32).max, drawn)
    sure = confidence(chosen, noise, temperature_of(schedule, step))
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
