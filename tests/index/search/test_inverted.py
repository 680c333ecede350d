"""Which lists are scanned, and where."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrag_engine.index.search import lists as lists_module
from arrag_engine.index.search.lists import Lists, assign, list_count, train_centroids
from tests.index.search.cases import (
    BUILDS,
    SPECS,
    make_keys,
    make_queries,
    make_searcher,
    squared_distances,
)

INVERTED = [(spec, kind) for spec, kind in BUILDS if kind != "flat"]
every_inverted = pytest.mark.parametrize(("spec", "kind"), INVERTED, ids=str)


def list_numbers(searcher):
    return searcher.arrays()["lists"]


@every_inverted
@pytest.mark.parametrize("nprobe", [1, 5, 13])
def test_exactly_the_nearest_nprobe_lists_are_scanned(spec, kind, nprobe):
    keys = make_keys(spec, images=40)
    searcher = make_searcher(keys, kind, nprobe)
    queries, numbers = make_queries(keys), list_numbers(searcher)
    order = np.argsort(squared_distances(queries, searcher.centroids), axis=1)
    held = searcher.reconstruct(np.arange(keys.size))
    for query, nearest in zip(queries, order[:, :nprobe], strict=True):
        ids = np.flatnonzero(np.isin(numbers, nearest))
        distances = squared_distances(query[None], held[ids])[0]
        k = min(5, len(ids))
        found, where = searcher.search(query[None], k)
        assert set(where[0]) <= set(ids)
        np.testing.assert_allclose(found[0], np.sort(distances)[:k], atol=2e-5)
        everything = searcher.search(query[None], len(ids))[1][0]
        assert set(everything) == set(ids)


@every_inverted
def test_more_lists_find_more(spec, kind):
    keys = make_keys(spec, images=60, codes=400)
    searcher = make_searcher(keys, kind)
    queries = make_queries(keys, 40)
    wanted = searcher.search(queries, 10)[1]

    def hits(nprobe):
        searcher.nprobe = nprobe
        found = searcher.search(queries, 10)[1]
        return sum(len(set(a) & set(b)) for a, b in zip(found, wanted, strict=True))

    few, some, every = hits(1), hits(8), hits(len(searcher.centroids))
    assert few < some < every == 400


@every_inverted
def test_more_lists_are_scanned_where_the_nearest_hold_too_few(spec, kind):
    keys = make_keys(spec, images=40)
    searcher = make_searcher(keys, kind, nprobe=1)
    for k in (1, 50, keys.size):
        _, ids = searcher.search(make_queries(keys), k)
        assert (ids >= 0).all()
        assert all(len(set(row)) == k for row in ids.tolist())


@every_inverted
def test_codes_are_scanned_where_they_lie(spec, kind, tmp_path):
    from arrag_engine.index.search import load_searcher

    keys = make_keys(spec)
    searcher = make_searcher(keys, kind)
    arrays = searcher.arrays()
    np.save(tmp_path / "codes.npy", arrays["codes"])
    arrays["codes"] = mapped = np.load(tmp_path / "codes.npy", mmap_mode="r")
    other = load_searcher(kind, keys, arrays, searcher.settings)
    queries = make_queries(keys)
    for a, b in zip(other.search(queries, 9), searcher.search(queries, 9), strict=True):
        assert np.array_equal(a, b)
    assert np.shares_memory(other.codes, mapped)


@every_inverted
def test_threads_may_ask_at_once(spec, kind):
    keys = make_keys(spec, images=40)
    searcher = make_searcher(keys, kind)
    queries = make_queries(keys, 64)
    wanted = searcher.search(queries, 20)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda query: searcher.search(query[None], 20), queries))
    for part, parts in zip(wanted, zip(*answers, strict=True), strict=True):
        assert np.array_equal(part, np.concatenate(parts))


@every_inverted
def test_restricted_it_scans_more_lists_where_they_are_shorter(spec, kind, monkeypatch):
    module = "arrag_engine.index.search.inverted"
    for name, value in {"OPENING": 0, "EXACT": 1e9, "PATIENCE": 1}.items():
        monkeypatch.setattr(f"{module}.{name}", value)
    searcher = make_searcher(make_keys(spec, images=40), kind, nprobe=3)
    assert searcher.restrict(np.arange(20)).nprobe == 6
    assert searcher.restrict(np.array([5])).nprobe == min(120, len(searcher.centroids))
    monkeypatch.setattr(f"{module}.PATIENCE", 0.5)
    assert searcher.restrict(np.arange(10)).nprobe == 6
    assert searcher.restrict(np.arange(40)).nprobe == 3
    monkeypatch.setattr(f"{module}.OPENING", 1e6)
    assert searcher.restrict(np.arange(10)).nprobe == 3


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), max_size=60), st.integers(1, 20), st.data())
def test_lists_are_a_stable_sort_in_pieces(numbers, chunk, data):
    numbers = np.array(numbers, np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists_module, "CHUNK", chunk)
        found = Lists.sorted(numbers, 7)
    assert found.ids.tolist() == np.argsort(numbers, kind="stable").tolist()
    assert found.ids.dtype == np.uint32
    assert found.sizes.tolist() == np.bincount(numbers, minlength=7).tolist()
    assert np.array_equal(found.numbers(), np.sort(numbers))
    wanted = data.draw(st.sets(st.integers(0, len(numbers) - 1)) if len(numbers) else st.just([]))
    places = np.array(sorted(wanted), np.int64)
    taken = found.take(places)
    assert taken.ids.tolist() == found.ids[places].tolist()
    assert np.array_equal(taken.numbers(), found.numbers()[places])


def test_every_patch_stands_with_its_nearest_centroid():
    keys = make_keys(SPECS[0], images=30)
    centroids = train_centroids(keys, 20)
    numbers, spreads = assign(keys, centroids)
    distances = squared_distances(keys.rows(np.arange(keys.size)), centroids)
    chosen = distances[np.arange(keys.size), numbers]
    np.testing.assert_allclose(chosen, distances.min(axis=1), atol=1e-5)
    means = [chosen[numbers == i].mean() if (numbers == i).any() else 0 for i in range(20)]
    np.testing.assert_allclose(spreads, means, atol=1e-5)
    assert np.array_equal(train_centroids(keys, 20), centroids)


def test_the_number_of_lists_grows_with_the_root_and_fits_16_bits():
    counts = [list_count(n) for n in (1, 2, 9, 100, 10_000, 10_000_000, 10**9, 2**32)]
    assert counts == [1, 2, 9, 30, 300, 9487, 65536, 65536]
