"""What of a picture is its plain background."""

from __future__ import annotations

import numpy as np


def foreground(tokens: np.ndarray) -> np.ndarray:
    """Which tokens [pictures, N] are not the most frequent one of their picture, its plain
    background."""
    return np.stack([row != np.bincount(row).argmax() for row in tokens])
