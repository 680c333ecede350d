"""What is known of a training picture where the model fills its grid in any order.

A share cos(u π/2) of the tokens is unknown, u uniform: the shares that the cosine schedule leaves
behind its steps. What is retrieved depends on what is known, so every mask has look-ups of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..checkpoints import Checkpoint
from ..index import PatchIndex
from ..layers import KeyChoice, keyed
from ..recommended import recommended
from ..retrieval import Retriever, make_retriever, suited
from .data import image_hashes, pictures_by_hash
from .settings import TrainSettings

GOLDEN = (math.sqrt(5) - 1) / 2
"""Steps of this size, modulo 1, spread evenly however many there are: a few pictures show every
share of unknown tokens, whichever process takes them."""


@dataclass(frozen=True)
class Masks:
    """The masks of pictures, and what is retrieved where a mask hides a token.

    Args:
        size: Tokens of a picture.
        seed: Of the shares.
        candidates: Codes to retrieve for each position.
        retriever: Without it nothing is retrieved.
    """

    size: int
    seed: int
    candidates: int
    retriever: Retriever | None = None

    def known(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """Mask [N] of the tokens that are known of the picture in turn `number`."""
        start = np.random.default_rng((self.seed, 5)).random()
        u = (start + number * GOLDEN) % 1
        count = max(1, round(self.size * math.cos(u * math.pi / 2)))
        known = np.ones(self.size, bool)
        known[rng.permutation(self.size)[:count]] = False
        return known

    def found(
        self, tokens: np.ndarray, known: np.ndarray, digest: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(codes [N, K] int32 of the nearest patches of other pictures, -1 where there are none;
        mask [N] of the positions that are looked up: unknown ones with a known neighbour).

        Args:
            tokens: Of a picture [N].
            known: Mask [N].
            digest: sha256 of the picture [32]; patches of the same are left out.
        """
        codes = np.full((self.size, self.candidates), -1, np.int32)
        if self.retriever is None:
            return codes, np.zeros(self.size, bool)
        active = self.retriever.query.informed(known) & ~known
        places = np.flatnonzero(active)
        if len(places):
            own = self._own.get(digest.tobytes())
            without = None if own is None else [own] * len(places)
            hits = self.retriever.lookup(tokens, places, self.candidates, without, known)
            codes[places, : hits.codes.shape[1]] = hits.codes
        return codes, active

    @cached_property
    def _own(self) -> dict[bytes, list[int]]:
        assert self.retriever is not None
        return pictures_by_hash(image_hashes(self.retriever.source.sources))


def masks_for(base: Checkpoint, index: PatchIndex | None, settings: TrainSettings) -> Masks | None:
    """The masks of a model's training pictures; None for one that draws in raster order, where all
    that stands before a token is known.

    Raises:
        InputError: The index does not fit the model.
    """
    if base.model.order.raster:
        return None
    retriever = None
    if index is not None and settings.looked_up:
        retriever = drawing_retriever(base, index)
    return Masks(base.model.grid.size, settings.seed, settings.looked_up, retriever)


def drawing_retriever(base: Checkpoint, index: PatchIndex) -> Retriever:
    """One that finds what a drawing finds where nothing else is chosen."""
    model, advised = base.model, recommended(base)
    searched = keyed(index, KeyChoice(), advised.keys)[0].by_bits()
    options, codebook = suited(advised.retrieval, searched), model.vq.codebook(model.device)
    return make_retriever(searched, model.grid, codebook, options, order=model.order)
