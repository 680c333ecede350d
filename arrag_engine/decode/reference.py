"""AR-RAG as a student would write it: one picture, token by token, the whole sequence every time.

No cache, no window, no batch. `raster.py` and every other fast path is tested against this loop;
`reference_faid.py` has the passes with an adapter.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..models.base import RasterBackbone
from ..retrieval import Asked, Retriever, mix
from ..sampling import guide, model_distribution
from .kept import Kept
from .noise import Noise, draw
from .passes import prompt_streams
from .recipe import Recipe
from .reference_faid import adapter_hook, standing


@torch.inference_mode()
def draw_reference(model: RasterBackbone, recipe: Recipe, seed: int) -> np.ndarray:
    """Tokens [N] of the picture of a seed.

    p = (1 - λ) p_model + λ p_retrieval: from the second component where u < λ, else from the first.
    """
    size, vocab = model.grid.size, model.vocab
    sampling, kept = recipe.sampling, recipe.kept or Kept.first(np.empty(0), size)
    tokens, stays = kept.tokens[0].copy(), kept.mask[0]
    for position in np.flatnonzero(~stays).tolist():
        logits = next_logits(model, recipe, tokens, position)
        p = model_distribution(guide(logits, sampling.cfg)[0], sampling)
        asked = Asked(tokens, np.array([position]), standing(stays, position))
        weight, proposed = retrieve(recipe.retriever, asked, vocab)
        noise = None if sampling.greedy else Noise(seed, position, vocab)
        if noise is None:
            p = mix(p, proposed, weight)
        elif noise.uniform < weight:
            p = proposed
        tokens[position] = draw(p, noise)
    return tokens


def next_logits(model: RasterBackbone, recipe: Recipe, tokens: np.ndarray, position: int) -> Tensor:
    """Logits [streams, vocab] of the token at a position, after prompt and tokens[:position]."""
    ids = prompt_streams(recipe, model.device)
    picture = torch.from_numpy(tokens).to(model.device).expand(len(ids), -1)
    hook = adapter_hook(model, recipe, tokens, position, ids)
    x = torch.cat((model.embed_text(ids), model.embed_codes(picture)), dim=1)
    return model.logits(x, hook=hook)[:, ids.shape[1] - 1 + position]


def retrieve(retriever: Retriever | None, asked: Asked, vocab: int) -> tuple[float, Tensor]:
    """(λ, p_retrieval [vocab]) at the position asked for; λ is 0 where nothing is retrieved."""
    [position] = asked.positions
    if retriever is None or not retriever.mixes(position) or not retriever.query.knows(asked):
        return 0.0, torch.zeros(vocab)
    [proposal] = retriever.propose([asked])
    return retriever.weight(proposal), retriever.distribution(proposal, vocab)
