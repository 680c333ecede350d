"""Editing a picture: which of its tokens stay, and which are drawn anew."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import numpy as np
import torch

from .decode import Kept, Recipe
from .decode.canvas import begin_all
from .decode.masked_passes import ExactMasked
from .errors import InputError
from .grid import Grid
from .images import crop_boxes
from .likelihood import model_probabilities
from .models.base import Backbone, MaskedBackbone, RasterBackbone
from .settings import Sampling

MASKED = 0.5
"""From this value on a pixel of a mask is masked."""
BLANK = "the mask is empty, so nothing would be drawn anew; mask the part that is to be drawn anew"


def keep_outside(tokens: np.ndarray, mask: np.ndarray | None, grid: Grid) -> Kept:
    """The tokens that stay under a mask.

    Args:
        tokens: Codes [B or 1, height, width] of pictures.
        mask: [B or 1, H, W] in [0, 1], of any size; 1 = drawn anew. None: everything is.

    Raises:
        InputError: The tokens are of another grid, the mask is empty, or of another batch.
    """
    if tokens.shape[1:] != (grid.height, grid.width):
        height, width = tokens.shape[1:]
        raise InputError(
            f"the tokens are of {height}x{width} positions, the model draws {grid}; encode the "
            "picture with this model"
        )
    codes = tokens.reshape(len(tokens), -1).astype(np.int64)
    redrawn = np.ones((1, grid.size), bool) if mask is None else masked_positions(mask, grid)
    if not redrawn.any():
        raise InputError(BLANK)
    return Kept(codes, ~redrawn)


def masked_positions(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """Positions [B, N] that a mask [B, H, W] covers: those with a masked pixel in their cell, so
    that no spot is too small and nothing masked keeps its old token.

    A mask of another shape than the picture is centre-cropped, as a picture is that is encoded.
    """
    height, width = mask.shape[1:]
    left, top, right, bottom = crop_boxes((width, height), grid.height, grid.width)[0]
    shown = mask[:, math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)]
    masked = torch.from_numpy(shown >= MASKED).float()[:, None]
    cells = torch.nn.functional.adaptive_max_pool2d(masked, (grid.height, grid.width))
    return cells.flatten(1).bool().numpy()


@torch.inference_mode()
def keep_probable(
    model: Backbone, recipe: Recipe, share: float, device: torch.device | None = None
) -> Recipe:
    """The recipe, which keeps more: of the positions to be drawn anew only a share is, those whose
    tokens are the least probable under the model; ties go to the earlier position.

    Args:
        share: 0 = nothing, 1 = all.
    """
    kept = recipe.kept
    if kept is None or share == 1:
        return recipe
    masks = []
    for i in range(kept.pictures):
        one = kept.of(i)
        p = own_probabilities(model, replace(recipe, kept=one), device or model.device)
        masks.append(one.mask[0] | ~least_probable(p, ~one.mask[0], share))
    return replace(recipe, kept=Kept(kept.tokens, np.stack(masks)))


def share_of(share: float, count: int) -> int:
    """A share of a count, rounded up."""
    return math.ceil(share * count - 1e-9)


def least_probable(p: np.ndarray, candidates: np.ndarray, share: float) -> np.ndarray:
    """Mask [N] of a share of the candidates [N], those with the smallest p [N]."""
    places = np.flatnonzero(candidates)
    count = share_of(share, len(places))
    chosen = np.zeros(len(p), bool)
    chosen[places[np.argsort(p[places], kind="stable")[:count]]] = True
    return chosen


def own_probabilities(model: Backbone, recipe: Recipe, device: torch.device) -> np.ndarray:
    """Probabilities [N] of the kept picture's own tokens under the model, with the prompt and
    guidance, at temperature 1: in raster order given those before each, in any other order given
    the kept ones."""
    assert recipe.kept is not None
    tokens, sampling = recipe.kept.tokens[0], Sampling(cfg=recipe.sampling.cfg)
    if model.order.raster:
        raster = cast(RasterBackbone, model)
        p = model_probabilities(
            raster, recipe.prompt, recipe.unconditional, tokens, sampling, device
        )
    else:
        masked, plain = cast(MaskedBackbone, model), replace(recipe, sampling=sampling)
        canvases = begin_all([0], model.grid.size, recipe.kept)
        [p] = ExactMasked(masked, plain, device).predict(canvases, recipe.kept.mask)
    return p.cpu()[torch.arange(len(tokens)), torch.from_numpy(tokens)].numpy()
