"""Every structure against brute force over the keys it holds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrag_engine.grid import Grid
from arrag_engine.index import KeySpec
from arrag_engine.index.search.flat import Subset
from tests.index.search.cases import (
    BUILDS,
    all_keys,
    make_keys,
    make_queries,
    make_searcher,
    squared_distances,
)

every_build = pytest.mark.parametrize(("spec", "kind"), BUILDS, ids=str)


def check_result(searcher, rows, queries, k):
    """All of what is found, in order, are the nearest of rows {id: key}."""
    distances, ids = searcher.search(queries, k)
    known = np.array(sorted(rows))
    wanted = squared_distances(queries, np.array([rows[i] for i in known]))
    count = min(k, len(rows))
    assert distances.shape == ids.shape == (len(queries), count)
    assert (distances.dtype, ids.dtype) == (np.float32, np.int64)
    for row in range(len(queries)):
        assert len(set(ids[row])) == count
        assert set(ids[row]) <= set(known)
        own = wanted[row, np.searchsorted(known, ids[row])]
        np.testing.assert_allclose(distances[row], own, atol=2e-5, rtol=1e-5)
        nearest = np.sort(wanted[row])[:count]
        np.testing.assert_allclose(distances[row], nearest, atol=2e-5, rtol=1e-5)
        order = list(zip(distances[row].tolist(), ids[row].tolist(), strict=True))
        assert order == sorted(order)


def known_keys(searcher, ids):
    return dict(zip(ids.tolist(), searcher.reconstruct(ids), strict=True))


@every_build
@pytest.mark.parametrize("k", [1, 20, 10_000])
def test_it_finds_what_brute_force_finds(spec, kind, k):
    keys = make_keys(spec)
    searcher = make_searcher(keys, kind)
    rows = known_keys(searcher, np.arange(keys.size))
    check_result(searcher, rows, make_queries(keys), k)


@every_build
def test_it_holds_the_keys(spec, kind):
    keys = make_keys(spec)
    searcher = make_searcher(keys, kind)
    held, true = searcher.reconstruct(np.arange(keys.size)), all_keys(keys)
    error = 0.03 if kind == "ivf" else 0  # 8 bits, and a few outliers clipped
    assert searcher.size == keys.size
    assert np.abs(held - true).mean() <= error
    ids = np.array([3, 0, 3, keys.size - 1])
    assert np.array_equal(searcher.reconstruct(ids), held[ids])


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from(BUILDS),
    st.integers(1, 5),
    st.integers(3, 5),
    st.integers(4, 6),
    st.integers(1, 30),
    st.integers(1, 90),
    st.integers(0, 99),
)
def test_any_size_and_any_number_of_equal_keys_will_do(
    build, images, height, width, codes, k, seed
):
    spec, kind = build
    keys = make_keys(spec, images, Grid(height, width), codes, seed)
    searcher = make_searcher(keys, kind)
    rows = known_keys(searcher, np.arange(keys.size))
    check_result(searcher, rows, make_queries(keys, 3, seed), k)


@every_build
@pytest.mark.parametrize("code_dim", [2, 5, 16])
def test_codes_of_any_length_will_do(spec, kind, code_dim):
    keys = make_keys(spec, code_dim=code_dim)
    searcher = make_searcher(keys, kind)
    rows = known_keys(searcher, np.arange(keys.size))
    check_result(searcher, rows, make_queries(keys), 20)


@every_build
def test_one_picture_of_one_patch(spec, kind):
    keys = make_keys(KeySpec("causal-4", "skip", spec.space), images=1, grid=Grid(2, 3))
    assert keys.size == 1
    distances, ids = make_searcher(keys, kind).search(all_keys(keys), 5)
    assert ids.tolist() == [[0]]
    np.testing.assert_allclose(distances, 0, atol=1e-4)


@every_build
def test_a_query_finds_the_same_in_any_batch(spec, kind):
    keys = make_keys(spec, images=40)
    searcher = make_searcher(keys, kind)
    queries = make_queries(keys, 50)
    together = searcher.search(queries, 30)
    alone = [searcher.search(query[None], 30) for query in queries]
    for part, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert np.array_equal(part, np.concatenate(parts))


@every_build
def test_no_query_and_no_neighbours_asked(spec, kind):
    keys = make_keys(spec)
    searcher = make_searcher(keys, kind)
    assert searcher.search(make_queries(keys)[:0], 4)[1].shape == (0, 4)
    assert searcher.search(make_queries(keys, 3), 0)[1].shape == (3, 0)


@every_build
def test_queries_that_are_no_numbers_find_nothing_or_something(spec, kind):
    keys = make_keys(spec)
    searcher = make_searcher(keys, kind)
    queries = make_queries(keys, 3)
    queries[0], queries[1, 0] = np.nan, np.inf
    distances, ids = searcher.search(queries, 9)
    assert ((ids >= -1) & (ids < keys.size)).all()
    assert np.isinf(distances[ids < 0]).all()
    assert (ids[2] >= 0).all()


@every_build
@pytest.mark.parametrize("images", [[3], [7, 2], [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]], ids=str)
@pytest.mark.parametrize("opening", [0, 400], ids=["many", "few"])
def test_restricted_it_finds_what_brute_force_finds_there(spec, kind, images, opening, monkeypatch):
    """However few pictures count as few, which are searched exactly."""
    monkeypatch.setattr("arrag_engine.index.search.inverted.OPENING", opening)
    monkeypatch.setattr("arrag_engine.index.search.inverted.EXACT", 1 if opening else 1e9)
    keys = make_keys(spec)
    whole = make_searcher(keys, kind)
    part = whole.restrict(np.array(images))
    assert isinstance(part, Subset) == (kind == "flat" or opening > 0)
    per_image = len(keys.active)
    ids = np.concatenate([np.arange(i * per_image, (i + 1) * per_image) for i in sorted(images)])
    rows = known_keys(whole, ids)
    assert part.size == len(ids)
    check_result(part, rows, make_queries(keys), 25)
    check_result(part, rows, make_queries(keys), 10_000)
    again = part.restrict(np.array([3, 11]))
    wanted = ids[ids // per_image == 3]
    assert again.size == len(wanted)
    _, found = again.search(make_queries(keys), 10_000)
    assert (np.sort(found) == wanted).all()


def test_a_few_pictures_are_searched_and_not_stored():
    whole = make_searcher(make_keys(), "flat")
    part = whole.restrict(np.array([1]))
    for name in ("kind", "settings", "recall", "arrays"):
        assert hasattr(whole, name)
        assert not hasattr(part, name)
