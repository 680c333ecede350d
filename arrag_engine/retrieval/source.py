"""What a retriever needs of the place that it looks patches up in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..grid import Grid
from ..index import Calibration, Hits, KeySpec, Source, TokenRows


class PatchSource(Protocol):
    """Patches of real pictures that can be looked up by their surroundings.

    `PatchIndex` is one, a file of this machine; `ShardedLookup` another, the shards of an index
    here or on a cluster. The properties describe how keys are made; `lookup` is the only call while
    drawing.
    """

    @property
    def grid(self) -> Grid: ...

    @property
    def spec(self) -> KeySpec: ...

    @property
    def size(self) -> int:
        """Number of patches that can be found."""
        ...

    @property
    def sources(self) -> Sequence[Source]:
        """The pictures, by the source numbers of hits."""
        ...

    @property
    def tokens(self) -> TokenRows:
        """Codes [images, N] of the pictures, by the source numbers of hits."""
        ...

    @property
    def partial(self) -> bool:
        """Whether queries may have numbers that do not count (NaN)."""
        ...

    @property
    def calibration(self) -> Calibration | None: ...

    @property
    def uncalibrated(self) -> str:
        """Why there is no calibration, and what to do."""
        ...

    def identity(self) -> str:
        """What a trace names the index by, whatever its keys, search and view."""
        ...

    def check_fits(self, grid: Grid, codebook: np.ndarray) -> None:
        """Refuse a model whose tokens mean something else (InputError)."""
        ...

    def lookup(
        self,
        queries: np.ndarray,
        k: int,
        allowed: np.ndarray | None = None,
        without: Sequence[Sequence[int]] | None = None,
        complete: bool = False,
    ) -> Hits:
        """The k nearest patches of queries [B, D]; see `PatchIndex.lookup`."""
        ...
