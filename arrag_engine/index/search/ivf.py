"""Codes of the `ivf` structure: the difference of a key from its list's centroid, quantised."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..keys import CHUNK, Keys
from .flat import exact_index

if TYPE_CHECKING:
    import faiss

OUTLIERS = 1e-3
"""Share of the differences, at either end, that 8 bits do not reach: they are clipped."""
LARGEST = 1e6


def train_ranges(keys: Keys, centroids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Lowest value and span [2, dim] float32 of what keys differ by from their centroids."""
    rng = np.random.default_rng(2)
    ids = np.sort(rng.choice(keys.size, min(keys.size, CHUNK), replace=False))
    low, high = np.quantile(
        keys.rows(ids) - centroids[numbers[ids]], (OUTLIERS, 1 - OUTLIERS), axis=0
    )
    return np.stack((low, np.maximum(high - low, 1e-6))).astype(np.float32)


def _check_ranges(ranges: np.ndarray, dim: int) -> None:
    if ranges.dtype != np.float32 or ranges.shape != (2, dim):
        raise ValueError(f"ranges are {ranges.dtype} {ranges.shape} for {dim} numbers")
    if not (np.abs(ranges).max() < LARGEST and ranges[1].min() > 0):  # also false for NaN
        raise ValueError("a range of the codes is not valid")


class ScalarCodec:
    """Scalar quantisation of the difference between a key and its list's centroid.

    Args:
        centroids: [lists, dim] float32.
        ranges: Lowest value and span [2, dim] float32 of every number in 8 bits; None for half
            precision, which needs none.

    Raises:
        ValueError: Ranges that are none.
    """

    kind = "ivf"

    def __init__(self, keys: Keys, centroids: np.ndarray, ranges: np.ndarray | None) -> None:
        import faiss

        if ranges is not None:
            _check_ranges(ranges, keys.dim)
        eight, half = faiss.ScalarQuantizer.QT_8bit, faiss.ScalarQuantizer.QT_fp16
        self.keys = keys
        self.centroids = centroids
        self.ranges = ranges
        self.quantizer = faiss.ScalarQuantizer(keys.dim, half if ranges is None else eight)
        if ranges is not None:
            faiss.copy_array_to_vector(ranges.ravel(), self.quantizer.trained)

    def encode(self, ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        return self.quantizer.compute_codes(self.keys.rows(ids) - self.centroids[numbers])

    def decode(self, codes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        return self.quantizer.decode(np.ascontiguousarray(codes)) + self.centroids[numbers]

    def query(self, query: np.ndarray) -> np.ndarray:
        return query

    def index(self) -> faiss.IndexIVF:
        import faiss

        index = faiss.IndexIVFScalarQuantizer(
            exact_index(self.keys.dim, [self.centroids]),
            self.keys.dim,
            len(self.centroids),
            self.quantizer.qtype,
        )
        index.sq = self.quantizer
        index.is_trained = True
        return index

    def arrays(self) -> dict[str, np.ndarray]:
        return {} if self.ranges is None else {"ranges": self.ranges}

    def check(self, codes: np.ndarray) -> None:
        width = self.keys.dim * (1 if self.ranges is not None else 2)
        if codes.dtype != np.uint8 or codes.shape[1] != width:
            raise ValueError(f"codes are {codes.dtype} of {codes.shape[1]}, not uint8 of {width}")
        if self.ranges is None:
            for first in range(0, len(codes), CHUNK):
                if not np.isfinite(codes[first : first + CHUNK].view(np.float16)).all():
                    raise ValueError("a code is not a finite number")
