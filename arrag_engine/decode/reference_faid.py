"""FAiD's slow twin: the adapter in a pass over the prompt and the whole picture, as in training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..faid import FaidHook, whole_picture
from ..models.base import RasterBackbone
from ..retrieval import Asked, Layers, nearest_codes
from .recipe import Recipe


def adapter_hook(
    model: RasterBackbone, recipe: Recipe, tokens: np.ndarray, position: int, ids: Tensor
) -> FaidHook | None:
    """What the adapter of a recipe adds, when the token at a position is to be predicted.

    Args:
        tokens: [N]; those from `position` on are not drawn yet, and nothing before looks at them.
        ids: Prompts [streams, T]. The second stream receives no patches.
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
        torch.from_numpy(codes).to(model.device).expand(len(ids), -1, -1),
        torch.from_numpy(active).to(model.device),
        ids.shape[1],
        faid.semantics,
        rows=torch.tensor([1, 0][: len(ids)], device=model.device),
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
