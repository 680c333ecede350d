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
from .noise import Noise, draw
from .recipe import Recipe
from .reference_faid import adapter_hook


@torch.inference_mode()
def draw_reference(model: RasterBackbone, recipe: Recipe, seed: int) -> np.ndarray:
    """Tokens [N] of the picture of a seed.

    p = (1 - λ) p_model + λ p_retrieval: from the second component where u < λ, else from the first.
    """
    size, vocab = model.grid.size, model.vocab
    sampling, given = recipe.sampling, [] if recipe.given is None else recipe.given
    tokens = np.zeros(size, np.int64)
    tokens[: len(given)] = given
    for position in range(len(given), size):
        logits = next_logits(model, recipe, tokens, position)
        p = model_distribution(guide(logits, sampling.cfg)[0], sampling)
        weight, proposed = retrieve(recipe.retriever, tokens, position, vocab)
        noise = None if sampling.greedy else Noise(seed, position, vocab)
        if noise is None:
            p = mix(p, proposed, weight)
        elif noise.uniform < weight:
            p = proposed
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


def retrieve(
    retriever: Retriever | None, tokens: np.ndarray, position: int, vocab: int
) -> tuple[float, Tensor]:
    """(λ, p_retrieval [vocab]) at a position; λ is 0 where nothing is retrieved."""
    if retriever is None or not retriever.mixes(position):
        return 0.0, torch.zeros(vocab)
    [proposal] = retriever.propose([Asked(tokens, np.array([position]))])
    return retriever.weight(proposal), retriever.distribution(proposal, vocab)
