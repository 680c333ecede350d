"""Numbers about many drawn pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..index import PatchIndex


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [dim] and covariance [dim, dim] of features [pictures, dim]."""
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def frechet_distance(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """Squared Fréchet distance of two normal distributions given as (mean, covariance):
    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2) (Heusel et al., arXiv 1706.08500).
    """
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    root = _root(cov_a)
    cross = _root(root @ cov_b @ root)
    distance = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * cross)
    return float(max(distance, 0.0))


def _root(matrix: np.ndarray) -> np.ndarray:
    """Square root of a symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def copied_share(tokens: np.ndarray, index: PatchIndex) -> float:
    """Share of a picture's tokens [N] that equal, place by place, those of the picture of the
    index that it is most like."""
    pictures = index.tokens if index.images is None else index.tokens[index.images]
    return float((pictures == tokens).mean(axis=1).max())


def seed_variety(tokens: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """How much each picture of a prompt differs from the others, which have other seeds [seeds]:
    mean share of tokens that differ, of tokens [seeds, N] with two seeds or more.

    Args:
        counted: [seeds, N]; a place counts for two pictures if it is marked in one of them.
    """
    differs = tokens[:, None] != tokens[None]  # [seeds, seeds, N]
    counts = np.ones_like(differs) if counted is None else counted[:, None] | counted[None]
    share = (differs & counts).sum(axis=2) / counts.sum(axis=2).clip(1)
    return share.sum(axis=1) / (len(tokens) - 1)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (0 of a single value)."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return float(np.mean(values)), spread


RESAMPLES = 2000
SURE = 0.95
"""Share of the resampled means that an interval holds."""


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The interval (low, high) that holds `SURE` of the means of values [prompts, seeds] whose
    prompts and seeds are both drawn anew, with replacement (percentile bootstrap of crossed
    factors, Owen 2007, arXiv 0712.1111). Of one prompt or one seed alone, only the other varies.
    """
    prompts, seeds = values.shape
    rng = np.random.default_rng(seed)
    rows = rng.multinomial(prompts, np.full(prompts, 1 / prompts), RESAMPLES)
    columns = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES)
    means = ((rows @ values) * columns).sum(axis=1) / (prompts * seeds)
    low, high = np.quantile(means, [(1 - SURE) / 2, (1 + SURE) / 2])
    return float(low), float(high)
