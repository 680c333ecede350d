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
        active = layers.active
        look_up(layers, tokens, np.flatnonzero(active[: position + 1]), codes)
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


def look_up(layers: Layers, tokens: np.ndarray, positions: np.ndarray, codes: np.ndarray) -> None:
    """Fill codes [N, K] at active positions [P]."""
    if len(positions):
        for position, found in zip(
            positions, layers.propose([Asked(tokens, positions)]), strict=True
        ):
            nearest = nearest_codes(found, codes.shape[1])
            codes[position, : len(nearest)] = nearest
