"""Search in inverted lists: only those whose centroids are nearest to the query are scanned.

The codes of all lists are one array, which may be mapped from a file and is scanned in place:
loading does not read it. In memory are 4 bytes a patch, for the order of the lists.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Protocol

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


class Scanner(Protocol):
    """Scans the codes of chosen lists; may be called from several threads."""

    def nearest(self, query: np.ndarray, probes: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
        """The nearest codes of these lists [p] to a query [dim] float32, in no order.

        Returns:
            Finite squared distances [m] float32 and places [m] in the order of the lists. m is k,
            less where there are fewer, more where several are as near as the k-th.
        """
        ...


class Codec(Protocol):
    """The stored form of keys."""

    kind: str

    @property
    def name(self) -> str:
        """What a person calls the codes."""
        ...

    @property
    def exact(self) -> bool:
        """Whether codes stand for the keys themselves, not for rounded ones."""
        ...

    def encode(self, ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Codes [n, width] of patches [n] that stand in these lists [n]."""
        ...

    def decode(self, codes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Keys [n, dim] float32 of codes [n, width] that stand in these lists [n]."""
        ...

    def check(self, codes: np.ndarray) -> None:
        """Raise ValueError if codes [n, width] hold what `encode` does not give."""
        ...

    def scanner(self, lists: Lists, codes: np.ndarray) -> Scanner:
        """What scans codes [n, width] in the order of the lists."""
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
        target: The recall that was asked for; 0 if unknown.
        levelled: The recall at which smaller codes levelled off below the target; 0 if there are
            none or they were not tried.
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
        target: float = 0.0,
        levelled: float = 0.0,
    ) -> None:
        self.codec = codec
        self.kind = codec.kind
        self.centroids = centroids
        self.lists = lists
        self.codes = codes
        self.patches_per_image = patches_per_image
        self.nprobe = nprobe
        self.recall = recall
        self.target = target
        self.levelled = levelled

    @property
    def size(self) -> int:
        return len(self.lists.ids)

    @property
    def settings(self) -> dict[str, str]:
        settings = {"nprobe": str(self.nprobe), "recall": f"{self.recall:.4f}"}
        known = (("target", self.target), ("levelled", self.levelled))
        return settings | {name: f"{value:.8f}" for name, value in known if value}

    @property
    def choice(self) -> str:
        lists = f"{self.codec.name}, {self.nprobe} of {len(self.centroids)} lists"
        if not self.target:
            return lists
        reason = f"the fewest whose recall meets the target of {self.target:g}"
        if self.levelled:
            reason += f"; the recall of smaller codes levels off at {self.levelled:.4f}"
        return f"{lists}: {reason}"

    @cached_property
    def _coarse(self) -> faiss.IndexFlatL2:
        return exact_index(self.centroids.shape[1], [self.centroids])

    @cached_property
    def _scanner(self) -> Scanner:
        return self.codec.scanner(self.lists, self.codes)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Searcher`; scans more than `nprobe` lists where those hold fewer than k patches."""
        k = min(k, self.size)
        distances = np.full((len(queries), k), np.inf, np.float32)
        ids = np.full((len(queries), k), -1)
        for row in range(len(queries) if k else 0):
            query = np.ascontiguousarray(queries[row], dtype=np.float32)
            d, places = self._scanner.nearest(query, self._probes(query, k), k)
            i = self.lists.ids[places]
            order = np.lexsort((i, d))[:k]
            distances[row, : len(order)], ids[row, : len(order)] = d[order], i[order]
        return distances, ids

    def _probes(self, query: np.ndarray, k: int) -> np.ndarray:
        """Lists to scan, nearest first: `nprobe`, or as many as it takes to hold k patches."""
        probes = self._nearest_lists(query, self.nprobe)
        if self.lists.sizes[probes].sum() < k:
            probes = self._nearest_lists(query, len(self.centroids))
            enough = np.searchsorted(np.cumsum(self.lists.sizes[probes]), k) + 1
            probes = probes[: max(self.nprobe, enough)]
        return probes

    def _nearest_lists(self, query: np.ndarray, count: int) -> np.ndarray:
        numbers = self._coarse.search(query[None], count)[1][0]
        return numbers[numbers >= 0]  # a query that is not finite is near to none

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
