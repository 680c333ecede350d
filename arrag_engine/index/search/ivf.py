"""Codes of the `ivf` structure: the difference of a key from its list's centroid, quantised.

Some lists are a hundred times as wide as others. So before keys get 8 bits a number, the
differences of each list are divided by a power of two near their size. Powers of two change no
digit: distances in a list are those of the keys that its codes stand for, scaled exactly.
"""

from __future__ import annotations

from itertools import pairwise
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..keys import CHUNK, Keys
from .flat import exact_index
from .lists import Assigned, Lists

if TYPE_CHECKING:
    import faiss

OUTLIERS = 1e-3
"""Share of the differences, at either end, that 8 bits do not reach: they are clipped."""
LARGEST = 1e6
EXPONENT = 16
"""The largest size of a scale's exponent."""


class Scales(NamedTuple):
    """What 8 bits a number stand for."""

    ranges: np.ndarray
    """Lowest value and span [2, dim] float32 of the scaled differences."""
    exponents: np.ndarray
    """[lists] int32: differences in a list are divided by two to this power."""

    def check(self, lists: int, dim: int) -> None:
        """
        Raises:
            ValueError: These are no scales of so many lists.
        """
        ranges, exponents = self
        if ranges.dtype != np.float32 or ranges.shape != (2, dim):
            raise ValueError(f"ranges are {ranges.dtype} {ranges.shape} for {dim} numbers")
        if not (np.abs(ranges).max() < LARGEST and ranges[1].min() > 0):  # also false for NaN
            raise ValueError("a range of the codes is not valid")
        if exponents.dtype != np.int32 or exponents.shape != (lists,):
            raise ValueError(f"scales are {exponents.dtype} {exponents.shape} for {lists} lists")
        if np.abs(exponents.astype(np.int64)).max() > EXPONENT:
            raise ValueError("a scale of the codes is not valid")


def train_scales(keys: Keys, centroids: np.ndarray, assigned: Assigned) -> Scales:
    """Scales for keys in these lists."""
    sizes = np.sqrt(assigned.spreads / keys.dim)
    exponents = np.round(np.log2(np.maximum(sizes, 2.0**-EXPONENT))).astype(np.int32)
    exponents = exponents.clip(-EXPONENT, EXPONENT)
    rng = np.random.default_rng(2)
    ids = np.sort(rng.choice(keys.size, min(keys.size, CHUNK), replace=False))
    numbers = assigned.numbers[ids]
    differences = np.ldexp(keys.rows(ids) - centroids[numbers], -exponents[numbers][:, None])
    low, high = np.quantile(differences, (OUTLIERS, 1 - OUTLIERS), axis=0)
    ranges = np.stack((low, np.maximum(high - low, 1e-6))).astype(np.float32)
    return Scales(ranges, exponents)


class ScalarCodec:
    """Scalar quantisation of the difference between a key and its list's centroid.

    Args:
        centroids: [lists, dim] float32.
        scales: For 8 bits a number; None for half precision, which needs none.

    Raises:
        ValueError: Scales that are none.
    """

    kind = "ivf"
    exact = False

    def __init__(self, keys: Keys, centroids: np.ndarray, scales: Scales | None) -> None:
        import faiss

        if scales is not None:
            scales.check(len(centroids), keys.dim)
        eight, half = faiss.ScalarQuantizer.QT_8bit, faiss.ScalarQuantizer.QT_fp16
        self.keys = keys
        self.centroids = centroids
        self.scales = scales
        self.exponents = np.zeros(len(centroids), np.int32) if scales is None else scales.exponents
        self.quantizer = faiss.ScalarQuantizer(keys.dim, half if scales is None else eight)
        if scales is not None:
            faiss.copy_array_to_vector(scales.ranges.ravel(), self.quantizer.trained)

    @property
    def name(self) -> str:
        return f"{16 if self.scales is None else 8}-bit keys"

    def encode(self, ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        differences = self.keys.rows(ids) - self.centroids[numbers]
        return self.quantizer.compute_codes(
            np.ldexp(differences, -self.exponents[numbers][:, None])
        )

    def decode(self, codes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        differences = self.quantizer.decode(np.ascontiguousarray(codes))
        return np.ldexp(differences, self.exponents[numbers][:, None]) + self.centroids[numbers]

    def scanner(self, lists: Lists, codes: np.ndarray) -> FaissScanner:
        return FaissScanner(self, lists, codes)

    def index(self) -> faiss.IndexIVF:
        """An empty faiss index whose scanner reads the codes; its space is scaled list by list."""
        import faiss

        index = faiss.IndexIVFScalarQuantizer(
            exact_index(self.keys.dim, [np.ldexp(self.centroids, -self.exponents[:, None])]),
            self.keys.dim,
            len(self.centroids),
            self.quantizer.qtype,
        )
        index.sq = self.quantizer
        index.is_trained = True
        return index

    def arrays(self) -> dict[str, np.ndarray]:
        if self.scales is None:
            return {}
        return {"scaled_ranges": self.scales.ranges, "exponents": self.scales.exponents}

    def check(self, codes: np.ndarray) -> None:
        width = self.keys.dim * (1 if self.scales is not None else 2)
        if codes.dtype != np.uint8 or codes.shape[1] != width:
            raise ValueError(f"codes are {codes.dtype} of {codes.shape[1]}, not uint8 of {width}")
        if self.scales is None:
            for first in range(0, len(codes), CHUNK):
                if not np.isfinite(codes[first : first + CHUNK].view(np.float16)).all():
                    raise ValueError("a code is not a finite number")


def stored_scales(arrays: dict[str, np.ndarray], lists: int) -> Scales | None:
    """The scales among the arrays of a file, unchecked; those of version 0.2 and before scale
    nothing.

    Raises:
        ValueError: A part is missing.
    """
    if "ranges" in arrays:
        return Scales(arrays["ranges"], np.zeros(lists, np.int32))
    if len({"scaled_ranges", "exponents"} & set(arrays)) == 1:
        raise ValueError("the ivf structure has ranges without scales or scales without ranges")
    return Scales(arrays["scaled_ranges"], arrays["exponents"]) if "exponents" in arrays else None


class FaissScanner:
    """Faiss's scanner, whose answers are (list, place in it); see `Scanner`."""

    def __init__(self, codec: ScalarCodec, lists: Lists, codes: np.ndarray) -> None:
        import faiss

        self.codec, self.lists, self.codes = codec, lists, codes
        self._index = codec.index()  # kept, for its scanner reads tables of it
        parameters = faiss.SearchParametersIVF()
        self._scanner: Any = self._index.get_InvertedListScanner(True, None, parameters)
        self._pointers = [
            faiss.swig_ptr(codes[a:b]) if b > a else None
            for a, b in pairwise(lists.starts.tolist())
        ]
        self._lock = Lock()  # the scanner keeps the query as state

    def nearest(self, query: np.ndarray, probes: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
        with self._lock:
            distances, found = self._scan(query, probes, k)
        near = found >= 0
        places = self.lists.starts[found[near] >> 32] + (found[near] & 0xFFFFFFFF)
        return distances[near], places

    def _scan(self, query: np.ndarray, probes: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
        """Distances [k] and (list, place) [k], -1 where nothing was found."""
        import faiss

        distances = np.full(k, np.inf, np.float32)
        found = np.full(k, -1)
        heap = faiss.swig_ptr(distances), faiss.swig_ptr(found), k
        exponents = self.codec.exponents[probes]
        order = np.argsort(exponents, kind="stable")  # each scale once
        sizes, scanner, before = self.lists.sizes[probes], self._scanner, None
        steps = zip(*(a[order].tolist() for a in (exponents, probes, sizes)), strict=True)
        for exponent, number, size in steps:
            if exponent != before:
                if before is not None:
                    np.ldexp(distances, 2 * (before - exponent), out=distances)
                scaled = np.ldexp(query, -exponent)
                scanner.set_query(faiss.swig_ptr(scaled))
                before = exponent
            if size:
                scanner.set_list(number, 0.0)
                scanner.scan_codes(size, self._pointers[number], None, *heap)
        return np.ldexp(distances, 2 * (before or 0)), found
