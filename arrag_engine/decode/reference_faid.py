"""FAiD's slow twin: the adapter in a pass over the prompt and the whole picture, as in training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..faid import FaidHook, whole_picture
from ..models.base import RasterBackbone
from ..retrieval import Asked, Layers, nearest_codes
from .recipe import Recipe


def adapter_hook(
    model: RasterBackbone,
    recipe: Recipe,
    tokens: np.ndarray,
    position: int,
    length: int,
    blended: bool,
) -> FaidHook | None:
    """What the adapter of a recipe adds to a stream, when the token at a position is to be
    predicted.

    Args:
        tokens: [N]; those from `position` on are not drawn yet, and nothing before looks at them.
        length: Ids of the stream's prompt.
        blended: Whether the stream receives patches, as the conditional one does.
    """
    faid, size = recipe.faid, model.grid.size
    if faid is None or faid.strength == 0:
        return None
    codes, active = np.full((size, faid.received), -1), np.zeros(size, bool)
    layers = recipe.retrieval()
    if layers and faid.adapter.config.blender_layers:
        stays = np.zeros(size, bool) if recipe.kept is None else recipe.kept.mask[0]
        for place in np.flatnonzero(layers.active[: position + 1]).tolist():
            asked = Asked(tokens, np.array([place]), standing(stays, place))
            active[place] = look_up(layers, asked, codes[place])
    hook = whole_picture(
        model,
        faid.adapter,
        torch.from_numpy(codes).to(model.device)[None],
        torch.from_numpy(active).to(model.device),
        length,
        faid.semantics,
        rows=torch.tensor([int(blended)], device=model.device),
    )
    return replace(hook, strength=faid.strength)


def standing(stays: np.ndarray, position: int) -> np.ndarray:
    """Mask [N] of the tokens that a query may look at: those before it, and kept ones; none for
    position 0."""
    return (stays | (np.arange(len(stays)) < position)) & (position > 0)


def look_up(layers: Layers, asked: Asked, codes: np.ndarray) -> bool:
    """Fill codes [K] of the one position asked for; whether a layer works there."""
    [found] = layers.propose([asked])
    nearest = nearest_codes(found, len(codes))
    codes[: len(nearest)] = nearest
    return any(one is not None for one in found)
