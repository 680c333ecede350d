"""Retriever: from the tokens drawn so far to the patches that stood in the same surroundings."""

from __future__ import annotations

import numpy as np

from .errors import InputError
from .grid import NEIGHBORHOODS, Grid, is_causal, neighbor_table
from .index import Neighbors, PatchIndex
from .index.keys import gather_keys


class Retriever:
    """Looks a model's tokens up in an index that fits it.

    Args:
        index: Where to look.
        grid: What the model draws.
        codebook: The model's unit rows [codes, dim].

    Raises:
        InputError: The index was built for another grid or VQ.
    """

    def __init__(self, index: PatchIndex, grid: Grid, codebook: np.ndarray) -> None:
        index.check_fits(grid, codebook)
        self.index = index
        self.codebook = codebook
        self.neighbors = neighbor_table(grid, index.spec.neighborhood)
        self.places = index.spec.places(grid)
        self.active = np.zeros(grid.size, dtype=bool)
        self.active[index.active] = True

    def check_causal(self) -> None:
        """Refuse to serve a model that draws in raster order if queries need later tokens.

        Raises:
            InputError: The neighbourhood of the index is not causal.
        """
        neighborhood = self.index.spec.neighborhood
        if not is_causal(neighborhood):
            *names, last = filter(is_causal, NEIGHBORHOODS)
            raise InputError(
                f"the index looks patches up by {neighborhood}, which needs tokens that this model "
                f"draws later; load or build it with {', '.join(names)} or {last}"
            )

    def queries(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Queries [P, key dim] at positions [P], from tokens [N] drawn before them."""
        places = self.places[positions]
        return gather_keys(self.codebook[tokens], self.neighbors[positions], places)

    def retrieve(self, tokens: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        """The k nearest patches [P, k] at active positions [P]."""
        return self.index.search(self.queries(tokens, positions), k)
