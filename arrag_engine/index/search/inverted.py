"""Search in inverted lists: only those whose centroids are nearest to the query are scanned.

The codes of all lists are one array, which may be mapped from a file and is scanned in place:
loading does not read it. In memory are 4 bytes a patch, for the order of the lists.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .flat import Subset, among, exact_index
from .lists import Lists
from .searcher import Searcher

if TYPE_CHECKING:
    import faiss

OPENING = 400
"""Cost of opening a list, in codes scanned in the same time."""
EXACT = 1
"""Cost of scanning a key in float32, in codes scanned in the same time."""
PATIENCE = 0.75
"""Share of an unrestricted query's time that a restricted one may take: the costs are rough."""


class Codec(Protocol):
    """The stored form of keys."""

    kind: str

    def encode(self, ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Codes [n, width] of patches [n] that stand in these lists [n]."""
        ...

    def decode(self, codes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Keys [n, dim] float32 of codes [n, width] that stand in these lists [n]."""
        ...

    def check(self, codes: np.ndarray) -> None:
        """Raise ValueError if codes [n, width] hold what `encode` does not give."""
        ...

    def query(self, query: np.ndarray) -> np.ndarray:
        """A query [dim] as the scanner takes it, contiguous float32."""
        ...

    def index(self) -> faiss.IndexIVF:
        """An empty faiss index whose scanner reads the codes."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file must keep to read the codes."""
        ...


class Inverted:
    """Search in inverted lists.

    Args:
        centroids: [lists, dim] float32.
        codes: [n, width] in the order of `lists`.
        nprobe: Lists to scan for a query.
        recall: Share of the 64 nearest found with this `nprobe`.
    """

    def __init__(
        self,
        codec: Codec,
        centroids: np.ndarray,
        lists: Lists,
        codes: np.ndarray,
        patches_per_image: int,
        nprobe: int,
        recall: float = 0.0,
    ) -> None:
        self.codec = codec
        self.kind = codec.kind
        self.centroids = centroids
        self.lists = lists
        self.codes = codes
        self.patches_per_image = patches_per_image
        self.nprobe = nprobe
        self.recall = recall
        self._lock = Lock()  # the scanner keeps the query as state

    @property
    def size(self) -> int:
        return len(self.lists.ids)

    @property
    def settings(self) -> dict[str, str]:
        return {"nprobe": str(self.nprobe), "recall": f"{self.recall:.4f}"}

    @cached_property
    def _coarse(self) -> faiss.IndexFlatL2:
        return exact_index(self.centroids.shape[1], [self.centroids])

    @cached_property
    def _index(self) -> faiss.IndexIVF:
        """Kept, for its scanner reads tables of it."""
        return self.codec.index()

    @cached_property
    def _scanner(self) -> tuple[Any, list[Any]]:
        """Faiss's scanner, which answers (list, place in it), and where each list's codes lie."""
        import faiss

        parameters = faiss.SearchParametersIVF()
        scanner = self._index.get_InvertedListScanner(True, None, parameters)
        code_bytes = self.codes.reshape(len(self.codes), -1).view(np.uint8)
        pointers = [
            faiss.swig_ptr(code_bytes[a:b]) if b > a else None
            for a, b in pairwise(self.lists.starts.tolist())
        ]
        return scanner, pointers

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Searcher`; scans more than `nprobe` lists where those hold fewer than k patches."""
        k = min(k, self.size)
        distances = np.full((len(queries), k), np.inf, np.float32)
        ids = np.full((len(queries), k), -1)
        for row in range(len(queries) if k else 0):
            query = np.ascontiguousarray(queries[row], dtype=np.float32)
            with self._lock:
                d, i = self._scan(query, self._probes(query, k), k)
            order = np.lexsort((i, d))
            distances[row], ids[row] = d[order], i[order]
        return distances, ids

    def _probes(self, query: np.ndarray, k: int) -> list[int]:
        """Lists to scan, nearest first: `nprobe`, or as many as it takes to hold k patches."""
        probes = self._nearest_lists(query, self.nprobe)
        if self.lists.sizes[probes].sum() < k:
            probes = self._nearest_lists(query, len(self.centroids))
            enough = np.searchsorted(np.cumsum(self.lists.sizes[probes]), k) + 1
            probes = probes[: max(self.nprobe, enough)]
        return probes.tolist()

    def _nearest_lists(self, query: np.ndarray, count: int) -> np.ndarray:
        numbers = self._coarse.search(query[None], count)[1][0]
        return numbers[numbers >= 0]  # a query that is not finite is near to none

    def _scan(self, query: np.ndarray, probes: list[int], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances [k] and patches [k], in no order, of the nearest patches in these lists."""
        import faiss

        scanner, pointers = self._scanner
        distances = np.full(k, np.inf, np.float32)
        found = np.full(k, -1)
        heap = faiss.swig_ptr(distances), faiss.swig_ptr(found), k
        query = self.codec.query(query)
        scanner.set_query(faiss.swig_ptr(query))
        for number, size in zip(probes, self.lists.sizes[probes].tolist(), strict=True):
            if size:
                scanner.set_list(number, 0.0)
                scanner.scan_codes(size, pointers[number], None, *heap)
        places = self.lists.starts[found >> 32] + (found & 0xFFFFFFFF)
        missing = found < 0
        ids = self.lists.ids[np.where(missing, 0, places)].astype(np.int64)
        return np.where(missing, np.float32(np.inf), distances), np.where(missing, -1, ids)

    def restrict(self, images: np.ndarray) -> Searcher:
        """See `Searcher`; a copy of these pictures' codes, as keys when they are few.

        Lists are shorter then, so more of them are scanned in the time of an unrestricted query.
        """
        places = np.flatnonzero(among(self.lists.ids, self.patches_per_image, images))
        lists, codes = self.lists.take(places), self.codes[places]
        budget = PATIENCE * self.nprobe * (OPENING + self.size / len(self.centroids))
        if len(places) * EXACT <= budget:
            return Subset(
                lists.ids, self.codec.decode(codes, lists.numbers()), self.patches_per_image
            )
        nprobe = int(budget / (OPENING + len(places) / len(self.centroids)))
        nprobe = max(self.nprobe, min(nprobe, len(self.centroids)))
        return Inverted(self.codec, self.centroids, lists, codes, self.patches_per_image, nprobe)

    def reconstruct(self, ids: np.ndarray) -> np.ndarray:
        places = self._places[ids]
        numbers = np.searchsorted(self.lists.starts, places, side="right") - 1
        return self.codec.decode(self.codes[places], numbers)

    @cached_property
    def _places(self) -> np.ndarray:
        """Where each patch stands in list order [size] uint32."""
        places = np.empty_like(self.lists.ids)
        places[self.lists.ids] = np.arange(self.size, dtype=np.uint32)
        return places

    def arrays(self) -> dict[str, np.ndarray]:
        numbers = np.empty(self.size, np.uint16)
        numbers[self.lists.ids] = self.lists.numbers()
        arrays = {"centroids": self.centroids, "lists": numbers, "codes": self.codes}
        return arrays | self.codec.arrays()
