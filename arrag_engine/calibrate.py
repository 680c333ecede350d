"""Fit the calibration of an index: λ at each position from the evidence of the neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from .bounds import CEILING, HARM_SHARE
from .captions import everyday_captions
from .decode import Recipe, draw_pictures
from .errors import InputError
from .index import EVIDENCE, Calibration
from .likelihood import model_probabilities, retrieve_truth
from .models.janus.model import JanusPro
from .models.janus.prompt import PromptEncoder
from .retrieval import Retriever
from .settings import HARM, RetrievalOptions, Sampling

STEPS = 200
START = -2.0
"""First weight at the start of the optimisation: λ = 0.12 everywhere."""
DECAY = 1e-4
"""Weight decay, on evidence of unit spread: keeps the weights finite on few pictures."""
MIN_POSITIONS = 200
FLOOR = 0.02
"""Smaller λ count as 0: they would hardly ever choose a token, yet cost a search at every position
and, since all prompts share the noise of a seed, now and then spoil a token of all of them."""
OWN_PICTURES = 32
"""Pictures that the model draws where no known pictures are given: enough for `pocket`, see
docs/indexes.md."""
OWN_SEED = 0
OWN_WINDOW = 8
"""Tokens per pass: fewer passes, the same pictures."""
KNOWN_WEIGHTS = tuple(4.0**n for n in range(8))
"""Weights of the known pictures in the objective, beside 1 for the seen ones; the best is taken."""


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
    """A calibration and its result on the pictures it was fitted to, in bits per position."""

    calibration: Calibration
    bits_model: float
    bits_fixed: float
    """With the best single λ."""
    best_fixed: float
    bits_auto: float
    heard: float
    """Share of these positions with λ > 0."""
    known_model: float | None = None
    """On the known pictures, without retrieval; None: there were none."""
    known_auto: float | None = None
    spoiled: float | None = None
    """Share of their tokens that the model would draw right and retrieval draws wrong."""


def own_pictures(
    model: JanusPro, encoder: PromptEncoder, sampling: Sampling, count: int
) -> Iterator[tuple[np.ndarray, str]]:
    """Pictures drawn without retrieval: (tokens [N], caption) of prompts within the vocabulary.

    Args:
        sampling: The recommended sampling of the model.

    Raises:
        InputError: The tokenizer knows no words.
    """
    captions = everyday_captions(encoder, count, OWN_SEED)
    if not captions:
        raise InputError("the tokenizer knows no words to draw pictures of; pass known pictures")
    for number, text in enumerate(captions):
        prompt = encoder.encode(text)
        seeds = [OWN_SEED + number]
        recipe = Recipe(prompt.ids, prompt.unconditional, sampling)
        drawing = draw_pictures(model, recipe, seeds, window=OWN_WINDOW)
        yield drawing.tokens[0].flatten().numpy(), text


def observe(
    model: JanusPro,
    encoder: PromptEncoder,
    retriever: Retriever,
    pictures: Iterable[tuple[np.ndarray, str]],
    options: RetrievalOptions,
    progress: Callable[[], object] = lambda: None,
) -> Observations:
    """Teacher-forced probabilities at the positions of pictures (tokens [N], caption).

    An empty caption becomes the blank prompt.
    """
    parts = []
    for tokens, caption in pictures:
        prompt = encoder.encode(caption) if caption else encoder.blank()
        p = model_probabilities(model, prompt.ids, prompt.unconditional, tokens)
        true = p[torch.arange(len(tokens)), torch.from_numpy(tokens.astype(np.int64))].numpy()
        found = retrieve_truth(retriever, tokens, options, bool(prompt.unknown))
        at = found.found
        parts.append((true[found.positions][at], found.p_true[at], found.evidence[at]))
        progress()
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Observations(*(column.astype(np.float64) for column in joined))


def fit(
    seen: Observations,
    options: RetrievalOptions,
    ceiling: float = 1.0,
    known: Observations | None = None,
    harm: float = HARM,
) -> Fit:
    """The λ_i = ceiling · sigmoid(w · evidence_i), 0 below a floor, that makes the pictures most
    probable.

    Args:
        seen: Pictures of the kind that the index is for.
        known: Pictures that the model draws well without the index. Retrieval may spoil the share
            `harm` of their tokens, the mean of λ_i · max(0, p_model - p_retrieval); the floor is
            the lowest that keeps to it. Bits do not measure this: 0.005 spoiled tokens a position
            hardly change the bits, and are 0.7 wrong tokens in a picture of 144.

    Raises:
        InputError: A value out of range, or too few positions to fit to.
    """
    CEILING.check(ceiling)
    HARM_SHARE.check(harm)
    sets = [seen] if known is None else [seen, known]
    for part in sets:
        if len(part.p_model) < MIN_POSITIONS:
            raise InputError(
                f"{len(part.p_model)} positions with neighbours are too few for a calibration; "
                f"{MIN_POSITIONS} are needed; use more pictures"
            )
    fits = []
    for weight in (1.0,) if known is None else KNOWN_WEIGHTS:
        weights = _climb(sets, (1.0, weight)[: len(sets)], ceiling)
        calibration = Calibration(
            tuple(weights.tolist()),
            ceiling,
            options.temperature,
            options.neighbours,
            options.duplicates,
            options.top_p,
        )
        floor = max(FLOOR, 0.0 if known is None else _lowest_floor(calibration, known, harm))
        fits.append(_report(replace(calibration, floor=floor), seen, known))
    return min(fits, key=lambda found: found.bits_auto)


def _lowest_floor(calibration: Calibration, known: Observations, harm: float) -> float:
    """The lowest floor at which at most the share `harm` of the known tokens is spoiled."""
    weight = calibration.of(known.evidence)
    order = np.argsort(-weight, kind="stable")
    spoiled = np.cumsum(_spoiled(weight, known)[order]) / len(weight)
    within = int(np.searchsorted(spoiled, harm, side="right"))
    if within == len(weight):
        return 0.0
    return float(np.nextafter(weight[order[within]], np.inf))


def _spoiled(weight: np.ndarray, known: Observations) -> np.ndarray:
    """Probability [P] that the model draws a token right and retrieval, by its weight, wrong."""
    return weight * np.maximum(known.p_model - known.p_retrieval, 0)


@torch.inference_mode(False)
def _climb(sets: list[Observations], shares: tuple[float, ...], ceiling: float) -> np.ndarray:
    """The best weights [features]; the sets have these shares in the objective."""
    evidence = np.concatenate([part.evidence for part in sets])
    varies = np.arange(len(EVIDENCE)) > 0
    middle = np.where(varies, evidence.mean(axis=0), 0.0)
    spread = np.where(varies, evidence.std(axis=0) + 1e-6, 1.0)
    each = [np.full(len(p.p_model), s / len(p.p_model)) for p, s in zip(sets, shares, strict=True)]
    x, p_model, p_retrieval, share = (
        torch.from_numpy(array.astype(np.float64))
        for array in (
            (evidence - middle) / spread,
            np.concatenate([part.p_model for part in sets]).clip(1e-12),
            np.concatenate([part.p_retrieval for part in sets]),
            np.concatenate(each) / sum(shares),
        )
    )
    weights = torch.zeros(x.shape[1], dtype=torch.float64)
    weights[0] = START
    weights.requires_grad_(True)
    optimizer = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        lam = ceiling * torch.sigmoid(x @ weights)
        likelihood = (share * torch.log((1 - lam) * p_model + lam * p_retrieval)).sum()
        value = DECAY * (weights[1:] ** 2).sum() - likelihood
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    scaled = weights.detach().numpy() / spread
    scaled[0] -= (scaled * middle).sum()
    return scaled


def _report(calibration: Calibration, seen: Observations, known: Observations | None) -> Fit:
    shares = np.linspace(0, 0.95, 20)
    fixed = [_bits(seen, share) for share in shares]
    best = int(np.argmin(fixed))
    mine = calibration.of(seen.evidence)
    found = Fit(
        calibration,
        bits_model=fixed[0],
        bits_fixed=fixed[best],
        best_fixed=float(shares[best]),
        bits_auto=_bits(seen, mine),
        heard=float((mine > 0).mean()),
    )
    if known is None:
        return found
    weight = calibration.of(known.evidence)
    return replace(
        found,
        known_model=_bits(known, 0.0),
        known_auto=_bits(known, weight),
        spoiled=float(_spoiled(weight, known).mean()),
    )


def _bits(observed: Observations, share: np.ndarray | float) -> float:
    p = (1 - share) * observed.p_model + share * observed.p_retrieval
    return float(-np.log2(np.maximum(p, 1e-12)).mean())
