"""How much pictures of one prompt differ."""

from __future__ import annotations

import numpy as np


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


def foreground(tokens: np.ndarray) -> np.ndarray:
    """Which tokens [pictures, N] are not the most frequent one of their picture, its plain
    background."""
    return np.stack([row != np.bincount(row).argmax() for row in tokens])
