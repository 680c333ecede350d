"""The loop of a model's drawing order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch

from ..errors import InputError
from ..models.base import Backbone, MaskedBackbone, RasterBackbone
from .masked import draw_masked
from .raster import draw_raster
from .recipe import Drawing, Progress, Recipe
from .recorded import KeptPasses


def draw_pictures(
    model: Backbone,
    recipe: Recipe,
    seeds: Sequence[int],
    window: int = 1,
    progress: Progress | None = None,
    device: torch.device | None = None,
    kept: KeptPasses | None = None,
) -> Drawing:
    """Draw one picture per seed.

    The same model, recipe and seed give the same picture whatever the batch or window (in float32;
    in lower precision up to rounding).

    Args:
        window: Tokens computed per pass in raster order, 1 = sequential. A model that draws in any
            order computes all tokens in every pass.
        progress: See `Progress`.
        device: Where the model computes; where its weights lie when absent.
        kept: Passes of fixed shape that former drawings left. On a CPU, where such passes are
            slower, they run only if this is given.

    Raises:
        InputError: No seed, or what the loop of the order cannot draw.
    """
    if not seeds:
        raise InputError("there is no seed to draw a picture of; give one or more")
    if model.order.raster:
        raster = cast(RasterBackbone, model)
        return draw_raster(raster, recipe, seeds, window, progress, device, kept)
    return draw_masked(cast(MaskedBackbone, model), recipe, seeds, progress, device, kept)


def draw_one_by_one(
    model: Backbone,
    recipe: Recipe,
    seeds: Sequence[int],
    window: int = 1,
    progress: Progress | None = None,
    device: torch.device | None = None,
    kept: KeptPasses | None = None,
) -> Drawing:
    """`draw_pictures`, one picture after the other: in 16 bit, a pass over several pictures would
    round differently than the pass over one.

    Progress counts the positions of all pictures together, divided by their number.
    """
    tokens = np.full((len(seeds), model.grid.size), -1)
    parts: list[Drawing] = []

    def report(decided: int, current: np.ndarray) -> None:
        tokens[len(parts)] = current[0]
        if progress is not None:
            done = (len(parts) * model.grid.size + decided) // len(seeds)
            progress(done, tokens.copy())

    for i, seed in enumerate(seeds):
        mine = recipe if recipe.kept is None else replace(recipe, kept=recipe.kept.of(i))
        parts.append(draw_pictures(model, mine, [seed], window, report, device, kept))
    return Drawing(
        torch.cat([part.tokens for part in parts]),
        sum(part.passes for part in parts),
        [tracer for part in parts for tracer in part.tracers],
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )
