"""The storage of a search structure: what an index file contains of it."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .searcher import Searcher


class Stored(Protocol):
    """A structure that an index file can contain; `load_searcher` reads it back."""

    kind: str
    """`flat`, `ivf` or `compact`."""

    @property
    def recall(self) -> float:
        """Share of the 64 nearest patches that the search found when it was made."""
        ...

    @property
    def choice(self) -> str:
        """What building chose and why, for a person; empty where there is no choice."""
        ...

    @property
    def settings(self) -> dict[str, str]:
        """Header fields, `recall` among them."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """Tensors, besides those that the keys are made of."""
        ...


class Structure(Searcher, Stored, Protocol):
    """Search over a whole index, and its storage."""
