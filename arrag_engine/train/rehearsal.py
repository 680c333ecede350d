"""Pictures drawn by the base, which an adapter rehearses so that it keeps them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ..captions import everyday_captions
from ..checkpoints import Checkpoint
from ..decode import Recipe, draw_pictures
from ..index import PatchIndex
from ..retrieval import Retriever, make_retriever
from .data import Examples, Progress, retrieve_codes
from .settings import TrainSettings
from .state import RunFolder

EACH = 4
"""Pictures drawn of one caption, at once."""
VARIED = {"temperature": 1.0, "top_p": 0.95}
"""Sampling of these pictures. At the low temperature recommended for a small model, pictures of one
caption are nearly the same, and an adapter would overfit them."""
MEASURED_OWN = 32
"""Further pictures, of other captions, that are measured and not trained on."""


def draw_own(
    base: Checkpoint,
    index: PatchIndex | None,
    learnt: Sequence[str],
    settings: TrainSettings,
    run: RunFolder,
    device: torch.device,
    progress: Progress | None = None,
) -> Examples | None:
    """Pictures that the base draws itself with the guidance that suits it, with their captions and
    what is retrieved for them; kept in the run's folder caption by caption, so that drawing goes on
    where it stopped. The first `MEASURED_OWN` are for measuring.

    Args:
        learnt: Captions of the pictures to train on; see `everyday_captions`.
        progress: Called with (captions drawn, in all).

    Returns:
        None if `settings.rehearse` is 0, or the captions name everything that could be drawn.
    """
    if settings.rehearse == 0:
        return None
    count = -(-(settings.rehearse_pictures + MEASURED_OWN) // EACH)
    captions = everyday_captions(base.prompt_encoder, count, settings.seed, learnt)
    if not captions:
        return None
    model = base.model
    retriever = None
    if index is not None and model.order.raster:
        retriever = make_retriever(index, model.config.grid, model.vq.codebook(device))
    own = run.load_own()
    for number in range(len(own) // EACH if own else 0, count):
        drawn = draw_caption(base, captions[number], number, settings, retriever, device)
        own = own.join(drawn) if own else drawn
        run.save_own(own)
        if progress is not None:
            progress(number + 1, count)
    return own


def draw_caption(
    base: Checkpoint,
    caption: str,
    number: int,
    settings: TrainSettings,
    retriever: Retriever | None,
    device: torch.device,
) -> Examples:
    """The pictures of one caption; its number decides the noise."""
    prompt = base.prompt_encoder.encode(caption)
    seeds = np.random.SeedSequence((settings.seed, 4, number)).generate_state(EACH).tolist()
    sampling = replace(base.sampling, **VARIED)
    recipe = Recipe(prompt.ids, prompt.unconditional, sampling)
    drawing = draw_pictures(base.model, recipe, seeds, device=device)
    tokens = drawing.tokens.flatten(1).numpy()
    digests = np.stack([np.frombuffer(hashlib.sha256(t).digest(), np.uint8) for t in tokens])
    size, k = base.model.config.grid.size, settings.looked_up if base.model.order.raster else 0
    codes, active = np.full((EACH, size, k), -1, np.int32), np.zeros(size, bool)
    if retriever is not None:
        codes, active = retrieve_codes(retriever, tokens, digests, k), retriever.active
    return Examples(tokens, [caption] * EACH, digests, codes, active)
