"""FAiD's slow twin: the adapter in a pass over the prompt and the whole picture, as in training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..faid import FaidHook, whole_picture
from ..models.base import RasterBackbone
from ..retrieval import Asked, Retriever
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
    if recipe.retriever is not None and faid.adapter.config.blender_layers:
        stays = np.zeros(size, bool) if recipe.kept is None else recipe.kept.mask[0]
        for place in np.flatnonzero(recipe.retriever.active[: position + 1]):
            asked = Asked(tokens, np.array([place]), standing(stays, place))
            active[place] = look_up(recipe.retriever, asked, codes[place])
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


def standing(stays: np.ndarray, position: int) -> np.ndarray:
    """Mask [N] of the tokens that stand when one is drawn: those before it, and the kept ones."""
    return stays | (np.arange(len(stays)) < position)


def look_up(retriever: Retriever, asked: Asked, codes: np.ndarray) -> bool:
    """Fill codes [K] of the position asked for; whether it has a query."""
    if not retriever.query.knows(asked):
        return False
    found = retriever.source.lookup(retriever.query.queries(*asked), len(codes)).codes[0]
    codes[: len(found)] = found
    return True
