"""AR-RAG as a student would write it: one picture, token by token, the whole sequence every time.

No cache, no window, no batch. `raster.py` and every other fast path is tested against this loop;
`reference_faid.py` has the passes with an adapter.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..models.base import RasterBackbone
from ..retrieval import Asked, Layers, mix
from ..sampling import guide, model_distribution
from .kept import Kept
from .noise import Noise, draw
from .recipe import Recipe
from .reference_faid import adapter_hook, standing


@torch.inference_mode()
def draw_reference(model: RasterBackbone, recipe: Recipe, seed: int) -> np.ndarray:
    """Tokens [N] of the picture of a seed.

    p = (1 - Σ λ_j) p_model + Σ λ_j p_j: from layer j where u lies in [λ_1 + … + λ_(j-1),
    λ_1 + … + λ_j), else from the model.
    """
    size, vocab = model.grid.size, model.vocab
    sampling, layers = recipe.sampling, recipe.retrieval()
    kept = recipe.kept or Kept.first(np.empty(0), size)
    tokens, stays = kept.tokens[0].copy(), kept.mask[0]
    for position in np.flatnonzero(~stays).tolist():
        logits = next_logits(model, recipe, tokens, position)
        p = model_distribution(guide(logits, sampling.cfg)[0], sampling)
        noise = None if sampling.greedy else Noise(seed, position, vocab)
        if layers.mixes(position):
            asked = Asked(tokens, np.array([position]), standing(stays, position))
            p = with_retrieval(p, layers, asked, noise)
        tokens[position] = draw(p, noise)
    return tokens


def next_logits(model: RasterBackbone, recipe: Recipe, tokens: np.ndarray, position: int) -> Tensor:
    """Logits [streams, vocab] of the token at a position, after prompt and tokens[:position]."""
    picture, rows = model.embed_codes(torch.from_numpy(tokens).to(model.device)), []
    for stream, ids in enumerate(recipe.streams):
        text = model.embed_text(torch.tensor(ids, device=model.device))
        hook = adapter_hook(model, recipe, tokens, position, len(ids), blended=stream == 0)
        logits = model.logits(torch.cat((text, picture))[None], hook=hook)
        rows.append(logits[0, len(ids) - 1 + position])
    return torch.stack(rows)


def with_retrieval(p_model: Tensor, layers: Layers, asked: Asked, noise: Noise | None) -> Tensor:
    """The distribution [vocab] of the component that the noise chooses at the one position asked
    for; without noise, p itself."""
    [found], [position] = layers.propose([asked]), asked.positions
    if noise is None:
        weight, proposed = layers.mixture(found, position, len(p_model))
        return mix(p_model, proposed, weight)
    upper = 0.0
    for j, weight in enumerate(layers.weights(found, position)):
        if upper <= noise.uniform < upper + weight:
            return layers.distribution(found, j, len(p_model))
        upper += weight
    return p_model
