"""Probabilities of the tokens of real pictures, by the model and by retrieval: each token
given those before it, or given those that are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .decode import Recipe
from .decode.canvas import Canvas, begin
from .decode.masked_passes import open_prompts, predict
from .index import evidence
from .models.base import MaskedBackbone, RasterBackbone
from .retrieval import Retriever, proposal_distribution
from .sampling import guide, model_distribution
from .settings import RetrievalOptions, Sampling


@torch.inference_mode()
def model_probabilities(
    model: RasterBackbone,
    prompt: Sequence[int],
    unconditional: Sequence[int],
    tokens: np.ndarray,
    sampling: Sampling | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """p_model [N, vocab] on the CPU at every position of a picture's tokens [N], teacher-forced.

    Args:
        unconditional: Of any length.
        sampling: Without it, the model's own distribution: no guidance, temperature 1.
        device: Where the model computes; where its weights lie when absent.
    """
    sampling, device = sampling or Sampling(cfg=1.0), device or model.device
    streams = [prompt] if sampling.cfg == 1 else [prompt, unconditional]
    codes = torch.from_numpy(tokens[:-1].astype(np.int64)).to(device)
    picture, logits = model.embed_codes(codes), []
    for ids in streams:  # of any length each
        text = model.embed_text(torch.tensor(ids, device=device))
        logits.append(model.logits(torch.cat((text, picture))[None])[:, -len(tokens) :])
    return model_distribution(guide(torch.cat(logits), sampling.cfg)[0].cpu(), sampling)


@torch.inference_mode()
def masked_probabilities(
    model: MaskedBackbone, recipe: Recipe, tokens: np.ndarray, masks: Sequence[np.ndarray]
) -> tuple[Canvas, list[Tensor]]:
    """(the picture of tokens [N], to look up what is around them; p_model [1, N, vocab] on the CPU,
    given the tokens that each mask [N] says are known)."""
    opened, canvas = open_prompts(model, recipe, model.device), begin(0, len(tokens))
    canvas.tokens[:] = tokens
    return canvas, [
        predict(model, opened, recipe, [canvas], mask[None], model.device).cpu() for mask in masks
    ]


@dataclass(frozen=True)
class PictureLookup:
    """The look-ups of one picture, at the positions where retrieval runs."""

    positions: np.ndarray
    """[A]."""
    p_true: np.ndarray
    """p_retrieval of the picture's own token [A]; 0 where nothing was found."""
    found: np.ndarray
    """[A] whether anything was found."""
    evidence: np.ndarray
    """[A, features] of the calibration."""
    nearest: np.ndarray
    """The nearest neighbour's code [A], -1 = nothing."""


def retrieve_truth(
    retriever: Retriever, tokens: np.ndarray, options: RetrievalOptions, unknown: bool = False
) -> PictureLookup:
    """Look up every position of a picture from its own tokens [N].

    Args:
        unknown: Whether its caption has words that the model does not know.
    """
    tokens = tokens.astype(np.int64)
    positions = np.flatnonzero(retriever.active)
    hits = retriever.lookup(tokens, positions, options.neighbours)
    proposed = proposal_distribution(hits, options, len(retriever.query.codebook))
    return PictureLookup(
        positions,
        proposed[np.arange(len(positions)), tokens[positions]].double().numpy(),
        np.asarray(hits.found().any(axis=1)),
        evidence(hits, unknown),
        hits.codes[:, 0],
    )


def mixed(p_model: np.ndarray, lookup: PictureLookup, weight: np.ndarray | float) -> np.ndarray:
    """Probabilities [N] of a picture's own tokens: p_model [N] mixed with weight λ or λ_i [A]."""
    p = p_model.astype(np.float64)
    at = lookup.positions
    weight = np.where(lookup.found, weight, 0.0)
    p[at] = (1 - weight) * p[at] + weight * lookup.p_true
    return p


def bits(p: np.ndarray, where: np.ndarray | None = None) -> float:
    """Mean bits per token of probabilities, of all or of the marked ones."""
    p = p if where is None else p[where]
    return float(-np.log2(np.maximum(p, 1e-12)).mean())
