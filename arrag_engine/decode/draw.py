"""The loop of a model's drawing order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from ..errors import InputError
from ..models.base import Backbone, MaskedBackbone, RasterBackbone
from .masked import draw_masked
from .raster import draw_raster
from .recipe import Drawing, Progress, Recipe


def draw_pictures(
    model: Backbone,
    recipe: Recipe,
    seeds: Sequence[int],
    window: int = 1,
    progress: Progress | None = None,
    device: torch.device | None = None,
) -> Drawing:
    """Draw one picture per seed.

    The same model, recipe and seed give the same picture whatever the batch or window (in float32;
    in lower precision up to rounding).

    Args:
        window: Tokens computed per pass in raster order, 1 = sequential. A model that draws in any
            order computes all tokens in every pass.
        progress: See `Progress`.
        device: Where the model computes; where its weights lie when absent.

    Raises:
        InputError: No seed, or what the loop of the order cannot draw.
    """
    if not seeds:
        raise InputError("there is no seed to draw a picture of; give one or more")
    if model.order.raster:
        return draw_raster(cast(RasterBackbone, model), recipe, seeds, window, progress, device)
    return draw_masked(cast(MaskedBackbone, model), recipe, seeds, progress, device)
