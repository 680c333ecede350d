"""Fit when an index is to be trusted: λ at each position from what the neighbours say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from .daid import RetrievalOptions
from .errors import InputError
from .index import EVIDENCE, Calibration
from .janus import JanusPro
from .likelihood import model_probabilities, retrieve_truth
from .prompt import PromptEncoder
from .retriever import Retriever

STEPS = 200
START = -2.0
"""Score that the climb sets out from: λ = 0.12 everywhere."""
DECAY = 1e-4
"""Of squared weights, on evidence of unit spread: keeps them finite on few pictures."""
MIN_POSITIONS = 200


@dataclass(frozen=True)
class Observations:
    """Positions where retrieval found something."""

    p_model: np.ndarray
    """Of the true token [P]."""
    p_retrieval: np.ndarray
    """[P]."""
    evidence: np.ndarray
    """[P, features]."""


@dataclass(frozen=True)
class Fit:
    """A calibration and what it brings on the pictures it was fitted to, in bits per position."""

    calibration: Calibration
    bits_model: float
    bits_fixed: float
    """With the best single λ."""
    best_fixed: float
    bits_auto: float


def observe(
    model: JanusPro,
    encoder: PromptEncoder,
    retriever: Retriever,
    pictures: Iterable[tuple[np.ndarray, str]],
    options: RetrievalOptions,
    progress: Callable[[], object] = lambda: None,
) -> Observations:
    """Teacher-forced probabilities at the positions of pictures (tokens [N], caption).

    Captions may be empty: then the model hears nothing of what is on the picture.
    """
    parts = []
    for tokens, caption in pictures:
        prompt = encoder.encode(caption) if caption else encoder.blank()
        p = model_probabilities(model, prompt.ids, prompt.pad_id, tokens)
        true = p[torch.arange(len(tokens)), torch.from_numpy(tokens.astype(np.int64))].numpy()
        found = retrieve_truth(retriever, tokens, options)
        at = found.found
        parts.append((true[found.positions][at], found.p_true[at], found.evidence[at]))
        progress()
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Observations(*(column.astype(np.float64) for column in joined))


def fit(seen: Observations, options: RetrievalOptions, ceiling: float = 1.0) -> Fit:
    """The λ_i = ceiling · sigmoid(w · evidence_i) that makes the pictures most probable.

    Raises:
        InputError: Too few positions to tell anything from.
    """
    if len(seen.p_model) < MIN_POSITIONS:
        raise InputError(
            f"{len(seen.p_model)} positions with neighbours are too few to calibrate with, "
            f"{MIN_POSITIONS} are needed; bring more pictures"
        )
    varies = np.arange(len(EVIDENCE)) > 0
    middle = np.where(varies, seen.evidence.mean(axis=0), 0.0)
    spread = np.where(varies, seen.evidence.std(axis=0) + 1e-6, 1.0)
    scaled = _climb((seen.evidence - middle) / spread, seen, ceiling) / spread
    scaled[0] -= (scaled * middle).sum()
    calibration = Calibration(
        tuple(scaled.tolist()),
        ceiling,
        options.temperature,
        options.neighbours,
        options.duplicates,
        options.top_p,
    )
    return _report(calibration, seen)


@torch.inference_mode(False)
def _climb(evidence: np.ndarray, seen: Observations, ceiling: float) -> np.ndarray:
    """The best weights [features] for evidence [P, features] of unit spread."""
    arrays = (evidence, seen.p_model.clip(1e-12), seen.p_retrieval)
    x, p_model, p_retrieval = (torch.from_numpy(a.astype(np.float64)) for a in arrays)
    weights = torch.zeros(x.shape[1], dtype=torch.float64)
    weights[0] = START
    weights.requires_grad_(True)
    optimizer = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        share = ceiling * torch.sigmoid(x @ weights)
        likelihood = torch.log((1 - share) * p_model + share * p_retrieval).mean()
        value = DECAY * (weights[1:] ** 2).sum() - likelihood
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weights.detach().numpy()


def _report(calibration: Calibration, seen: Observations) -> Fit:
    def bits_of(share: np.ndarray | float) -> float:
        p = (1 - share) * seen.p_model + share * seen.p_retrieval
        return float(-np.log2(np.maximum(p, 1e-12)).mean())

    shares = np.linspace(0, 0.95, 20)
    fixed = [bits_of(share) for share in shares]
    best = int(np.argmin(fixed))
    auto = bits_of(calibration.of(seen.evidence))
    return Fit(calibration, fixed[0], fixed[best], float(shares[best]), auto)
