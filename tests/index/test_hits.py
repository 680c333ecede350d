"""Look-ups: which pictures are allowed, and which are left out for each query."""

import numpy as np
import pytest

from arrag_engine.errors import InputError
from tests.tiny import tiny_index


@pytest.fixture(scope="module")
def index(model):
    return tiny_index(model, 6)


QUERIES = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
WITHOUT = [[1], [], [0, 2, 5]]


@pytest.mark.parametrize("k", [4, 30, 10_000])
def test_pictures_left_out_are_those_of_each_query(index, k):
    everything = index.lookup(QUERIES, 10_000)
    hits = index.lookup(QUERIES, k, without=WITHOUT)
    for row, left_out in enumerate(WITHOUT):
        kept = everything.found()[row] & ~np.isin(everything.sources[row], left_out)
        wanted = [field[row][kept][:k] for field in everything.fields]
        found = hits.found()[row]
        assert [f[row][found].tolist() for f in hits.fields] == [w.tolist() for w in wanted]
        assert (hits.distances[row][~found] == np.inf).all()
        assert (hits.codes[row][~found] == -1).all()


def test_allowed_pictures_restrict_every_query(index):
    hits = index.lookup(QUERIES, 20, allowed=np.array([2, 4]))
    view = index.restricted(np.array([2, 4])).lookup(QUERIES, 20)
    assert all(np.array_equal(a, b) for a, b in zip(hits.fields, view.fields, strict=True))
    with pytest.raises(InputError, match="no picture of the index is left"):
        index.lookup(QUERIES, 20, allowed=np.array([], int))


def test_hits_say_where_a_patch_is(index):
    hits = index.lookup(QUERIES, 7)
    assert np.array_equal(index.tokens[hits.sources, hits.positions], hits.codes)
    sources, positions = index.locate(index.numbers(hits))
    assert np.array_equal(sources, hits.sources)
    assert np.array_equal(positions, hits.positions)
