"""Queries of pictures of which only some tokens are known."""

import numpy as np
import pytest

from arrag_engine.grid import NEIGHBORHOODS, Grid
from arrag_engine.index import KeySpec
from arrag_engine.retrieval import Asked, QueryMaker
from tests import slow

GRID = Grid(4, 5)
CODEBOOK = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
TOKENS = np.random.default_rng(1).integers(0, 16, GRID.size)


@pytest.mark.parametrize("neighborhood", ["causal-4", "ring-8"])
def test_an_unknown_neighbour_counts_as_one_outside_the_picture(neighborhood):
    maker = QueryMaker(KeySpec(neighborhood, "zero", "codebook"), GRID, CODEBOOK)
    known = np.random.default_rng(2).random(GRID.size) < 0.5
    positions = np.flatnonzero(maker.active)
    queries = maker.queries(TOKENS, positions, known)
    vectors = np.where(known[:, None], CODEBOOK[TOKENS], 0)
    for query, position in zip(queries, positions, strict=True):
        wanted = slow.key(vectors, GRID, NEIGHBORHOODS[neighborhood], position)
        assert np.array_equal(query, wanted.astype(np.float32))


def test_surroundings_change_with_the_query_alone():
    maker = QueryMaker(KeySpec("ring-8", "zero", "codebook"), GRID, CODEBOOK)
    known = np.ones(GRID.size, bool)
    before = maker.surroundings(Asked(TOKENS, np.arange(GRID.size), known))
    known[7] = False
    after = maker.surroundings(Asked(TOKENS, np.arange(GRID.size), known))
    changed = {i for i in range(GRID.size) if before[i] != after[i]}
    assert changed == {1, 2, 3, 6, 8, 11, 12, 13}
