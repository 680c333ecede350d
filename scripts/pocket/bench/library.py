"""The index as each use and task wants it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from arrag_engine.checkpoints import Checkpoint
from arrag_engine.errors import InputError
from arrag_engine.index import PatchIndex
from arrag_engine.retrieval import Retriever, calibrated_options, make_retriever

from .settings import Use


class Library:
    """The index as each use and task wants it; what was made once is kept.

    Raises:
        InputError: The index is for another model.
    """

    def __init__(self, checkpoint: Checkpoint, index: PatchIndex) -> None:
        self.index = index
        self.grid, self.order = checkpoint.model.grid, checkpoint.model.order
        self.codebook = checkpoint.model.vq.codebook(checkpoint.model.device)
        index.check_fits(self.grid, self.codebook)
        self.names = np.array([source.name for source in index.sources])
        self._rekeyed: dict = {}
        self._views: dict = {}

    def of_parts(self, parts: Sequence[str]) -> np.ndarray:
        """Numbers of the pictures whose names begin with one of `parts`."""
        return np.flatnonzero([name.startswith(tuple(parts)) for name in self.names.tolist()])

    def view(self, use: Use, control: bool, word: str) -> PatchIndex:
        """The part of the index that a task of a use may look at.

        Raises:
            InputError: The index has no picture of that part.
        """
        by_word = use.by_word and not control
        key = (use.spec, use.control if control else use.parts, word if by_word else "")
        if key not in self._views:
            images = self.of_parts(key[1])
            if by_word:
                images = np.intersect1d(images, self.index.sources.matching(word, ("caption",)))
            if len(images) == 0:
                wanted = f" with {word!r} in its caption" if by_word else ""
                raise InputError(
                    f"the index has no picture in {', '.join(key[1]) or 'it'}{wanted}; "
                    "evaluate with the index that scripts/pocket/make.py builds"
                )
            self._views[key] = self._keyed(use).restricted(images)
        return self._views[key]

    def _keyed(self, use: Use) -> PatchIndex:
        if use.spec not in self._rekeyed:
            index = self.index if use.spec is None else self.index.rekeyed(use.spec)
            self._rekeyed[use.spec] = index if self.order.raster else index.by_bits()
        return self._rekeyed[use.spec]

    def retriever(
        self, use: Use, method: str, word: str, unknown_words: bool = False
    ) -> Retriever | None:
        """What a method looks up for a task."""
        if method == "plain":
            return None
        options = use.options
        if method == "auto":
            options = calibrated_options(self.index)
        if method == "faid":
            options = replace(options, weight=0.0)
        view = self.view_of(use, method, word)
        return make_retriever(
            *(view, self.grid, self.codebook, options, unknown_words, use.steering),
            order=self.order,
        )

    def view_of(self, use: Use, method: str, word: str) -> PatchIndex:
        """The part of the index that a method may look at."""
        if method == "auto":
            use = replace(use, spec=None, parts=("",), by_word=False)  # as it was calibrated
        return self.view(use, method == "control", word)
