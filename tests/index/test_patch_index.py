"""Search against brute force."""

from dataclasses import replace

import numpy as np
import pytest

from arrag_engine.errors import InputError
from arrag_engine.grid import BORDERS, NEIGHBORHOODS, Grid
from arrag_engine.index import KEY_SPACES, KeySpec
from arrag_engine.index.keys import gather_keys, index_keys
from tests import slow
from tests.tiny import tiny_index, tiny_model


def every_spec(test):
    for name, values in (
        ("neighborhood", NEIGHBORHOODS),
        ("borders", BORDERS),
        ("space", KEY_SPACES),
    ):
        test = pytest.mark.parametrize(name, values)(test)
    return test


def index_of(neighborhood, borders, space, seed=0):
    return tiny_index(tiny_model(), 4, seed, KeySpec(neighborhood, borders, space))


def random_queries(index, count, seed=1):
    rng = np.random.default_rng(seed)
    offsets = len(NEIGHBORHOODS[index.spec.neighborhood])
    rows = index.codebook[rng.integers(0, len(index.codebook), (count, offsets))]
    return rows.reshape(count, -1)


@every_spec
def test_keys_equal_a_plain_walk(neighborhood, borders, space):
    index = index_of(neighborhood, borders, space)
    vectors = index.codebook[index.tokens] if index.vectors is None else index.vectors
    found = index_keys(vectors, index.grid, index.spec)
    wanted = slow.patches(index, NEIGHBORHOODS[neighborhood])
    assert index.size == len(wanted)
    assert np.array_equal(found, np.array([key for key, *_ in wanted], dtype=np.float32))


@every_spec
@pytest.mark.parametrize("k", [1, 13, 10_000])
def test_search_equals_brute_force(neighborhood, borders, space, k):
    index = index_of(neighborhood, borders, space)
    queries = random_queries(index, 6)
    found = index.search(queries, k)
    patches = slow.patches(index, NEIGHBORHOODS[neighborhood])
    keys = np.array([key for key, *_ in patches])
    codes = np.array([code for _, code, *_ in patches])
    assert found.ids.shape == (6, min(k, len(patches)))
    for row, query in enumerate(queries):
        distances = ((keys - query) ** 2).sum(1)
        wanted = np.sort(distances)[:k]
        np.testing.assert_allclose(found.distances[row], wanted, atol=2e-5)
        np.testing.assert_allclose(distances[found.ids[row]], wanted, atol=2e-5)
        assert len(set(found.ids[row])) == len(wanted)
        assert np.array_equal(found.codes[row], codes[found.ids[row]])
    assert found.found().all()


@every_spec
def test_a_row_is_located_in_its_picture_and_place(neighborhood, borders, space):
    index = index_of(neighborhood, borders, space)
    pictures, places = index.locate(np.arange(index.size))
    wanted = [(i, p) for _, _, i, p in slow.patches(index, NEIGHBORHOODS[neighborhood])]
    assert list(zip(pictures.tolist(), places.tolist(), strict=True)) == wanted


def test_pictures_that_are_not_square_keep_rows_and_columns_apart():
    model = tiny_model(config=replace(tiny_model().config, grid=Grid(3, 7)))
    index = tiny_index(model)
    assert index.active.tolist() == [8, 9, 10, 11, 12, 15, 16, 17, 18, 19]
    wanted = [key for key, *_ in slow.patches(index, NEIGHBORHOODS["causal-4"])]
    found = index_keys(index.vectors, index.grid, index.spec)
    np.testing.assert_allclose(found, np.array(wanted), atol=1e-7)


def test_nothing_found_is_masked_and_never_a_real_patch(index, monkeypatch):
    class Nothing:
        def search(self, queries, k):
            shape = (len(queries), k)
            return np.full(shape, 3.4e38, np.float32), np.full(shape, -1)

    other = replace(index)
    other.__dict__["_search"] = Nothing()
    found = other.search(np.zeros((2, 32)), 3)
    assert not found.found().any()
    assert np.isinf(found.distances).all()
    assert (found.codes == -1).all()


def test_positions_outside_contribute_zeros_even_where_vectors_are_not_finite():
    vectors = np.full((1, 3, 2), np.nan, np.float32)
    vectors[0, 1] = 5
    keys = gather_keys(vectors, np.array([[-1, 1]]))
    assert keys.tolist() == [[[0, 0, 5, 5]]]


@pytest.mark.parametrize(
    ("field", "value"), [("neighborhood", "ring"), ("borders", "wrap"), ("space", "pixels")]
)
def test_an_unknown_way_to_make_keys_is_refused(field, value):
    with pytest.raises(InputError, match=f"{value!r}; choose one of"):
        KeySpec(**{field: value})


def test_an_index_fits_the_model_it_was_built_with_only(index):
    index.check_fits(Grid(6, 6), index.codebook)
    with pytest.raises(InputError, match="6x6 grid, the model draws 24x24; build an index"):
        index.check_fits(Grid(24, 24), index.codebook)
    with pytest.raises(
        InputError, match=r"another VQ .64 codes of 8 numbers, the model has 5 of 8"
    ):
        index.check_fits(Grid(6, 6), index.codebook[:5])
    with pytest.raises(InputError, match=r"another VQ .a code agrees only to cosine"):
        index.check_fits(Grid(6, 6), index.codebook[::-1])
