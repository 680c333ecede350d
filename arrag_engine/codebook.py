"""Whether two codebooks give codes the same meaning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIN_COSINE = 0.999
"""Codebook rows at least this alike are the same VQ in another dtype or layout."""
TINY = 1e-12
"""Below the length of any row."""


@dataclass(frozen=True)
class Agreement:
    """How alike two codebooks are."""

    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    cosine: float
    """Of the pair of rows that agrees least; NaN when the shapes differ."""

    @property
    def same(self) -> bool:
        """Whether a code means the same patch in both."""
        return self.cosine >= MIN_COSINE

    def __str__(self) -> str:
        (codes_a, dim_a), (codes_b, dim_b) = self.shapes
        if self.shapes[0] != self.shapes[1]:
            return f"{codes_b} codes of {dim_b} numbers, the model has {codes_a} of {dim_a}"
        return f"a code agrees only to cosine {self.cosine:.3f}, needed {MIN_COSINE}"


def codebook_agreement(a: np.ndarray, b: np.ndarray) -> Agreement:
    """Compare rows [codes, dim] of the model (a) and of something made with a VQ (b)."""
    if a.shape != b.shape:
        return Agreement((a.shape, b.shape), float("nan"))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(lengths, np.float32(TINY))
    return Agreement((a.shape, b.shape), float(cosines.min()))
