"""What is in the patches of a picture, as numbers to compare."""

from __future__ import annotations

import numpy as np
from backgrounds import STEP

_FACTORS = np.random.default_rng(0).integers(2**63, size=STEP * STEP * 3, dtype=np.uint64) * 2 + 1


def patch_contents(pixels: np.ndarray) -> np.ndarray:
    """A number for what each patch shows: the same pixels give the same number.

    Args:
        pixels: [B, H, W, 3] uint8, H and W multiples of STEP.

    Returns:
        [B, patches] uint64 in raster order; a random hash, so others hardly ever share it.
    """
    batch, height, width, _ = pixels.shape
    rows, columns = height // STEP, width // STEP
    patches = pixels.reshape(batch, rows, STEP, columns, STEP, 3).transpose(0, 1, 3, 2, 4, 5)
    flat = patches.reshape(batch, rows * columns, -1).astype(np.uint64)
    return (flat * _FACTORS).sum(axis=2, dtype=np.uint64)
