"""Search against brute force."""

from dataclasses import replace

import numpy as np
import pytest

from arrag_engine.errors import InputError
from arrag_engine.grid import BORDERS, NEIGHBORHOODS, Grid
from arrag_engine.index import KEY_SPACES, KeySpec, create_index
from arrag_engine.index.keys import Keys, gather_keys
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


def wide_model():
    """Its grid has places for every neighbourhood."""
    return tiny_model(config=replace(tiny_model().config, grid=Grid(5, 7)))


def index_of(neighborhood, borders, space, seed=0):
    return tiny_index(wide_model(), 4, seed, KeySpec(neighborhood, borders, space))


def keys_of(index):
    keys = Keys(index.tokens, index.vectors, index.codebook, index.grid, index.spec)
    return keys.of_images(0, len(index.tokens))


def random_queries(index, count, seed=1):
    rng = np.random.default_rng(seed)
    offsets = len(NEIGHBORHOODS[index.spec.neighborhood])
    rows = index.codebook[rng.integers(0, len(index.codebook), (count, offsets))]
    return rows.reshape(count, -1)


@every_spec
def test_keys_equal_a_plain_walk(neighborhood, borders, space):
    index = index_of(neighborhood, borders, space)
    found = keys_of(index)
    wanted = slow.patches(index, NEIGHBORHOODS[neighborhood])
    assert index.size == len(wanted)
    assert np.array_equal(found, np.array([key for key, *_ in wanted], dtype=np.float32))


@every_spec
@pytest.mark.parametrize("k", [1, 13, 10_000])
def test_search_equals_brute_force(neighborhood, borders, space, k):
    index = index_of(neighborhood, borders, space)
    queries = random_queries(index, 6)
    found = index.lookup(queries, k)
    patches = slow.patches(index, NEIGHBORHOODS[neighborhood])
    keys = np.array([key for key, *_ in patches])
    codes = np.array([code for _, code, *_ in patches])
    numbers = index.numbers(found)
    assert numbers.shape == (6, min(k, len(patches)))
    for row, query in enumerate(queries):
        distances = ((keys - query) ** 2).sum(1)
        wanted = np.sort(distances)[:k]
        np.testing.assert_allclose(found.distances[row], wanted, atol=2e-5)
        np.testing.assert_allclose(distances[numbers[row]], wanted, atol=2e-5)
        assert len(set(numbers[row])) == len(wanted)
        assert np.array_equal(found.codes[row], codes[numbers[row]])
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
    found = keys_of(index)
    np.testing.assert_allclose(found, np.array(wanted), atol=1e-7)


def test_nothing_found_is_masked_and_never_a_real_patch(index):
    class Nothing:
        def search(self, queries, k):
            shape = (len(queries), k)
            return np.full(shape, np.inf, np.float32), np.full(shape, -1)

    found = replace(index, searcher=Nothing()).lookup(np.zeros((2, 32)), 3)
    assert not found.found().any()
    assert (found.codes == -1).all()


def test_a_view_finds_patches_of_its_pictures_only_by_their_numbers_in_the_whole(model):
    index = tiny_index(model, 6)
    view = index.restricted(np.array([4, 1, 4]))
    queries = random_queries(index, 5)
    found, everything = view.lookup(queries, 10_000), index.lookup(queries, 10_000)
    assert view.size == found.codes.shape[1] == 2 * len(index.active)
    for row in range(5):
        of_view = np.isin(everything.sources[row], [1, 4])
        assert np.array_equal(found.sources[row], everything.sources[row][of_view])
        assert np.array_equal(found.positions[row], everything.positions[row][of_view])
        assert np.array_equal(found.codes[row], everything.codes[row][of_view])


def test_a_pattern_chooses_pictures_by_caption_name_or_origin(model):
    index = tiny_index(model, 12)
    assert index.matching("picture 3").images.tolist() == [3]
    assert index.matching("picture 1").images.tolist() == [1, 10, 11]
    assert index.matching("7.png").images.tolist() == [7]
    assert index.matching("https://example.org/5").images.tolist() == [5]
    with pytest.raises(InputError, match="12 pictures in the index matches 'cat'; choose another"):
        index.matching("cat")


@every_spec
def test_other_keys_are_those_of_an_index_built_with_them(neighborhood, borders, space):
    spec = KeySpec(neighborhood, borders, space, 0.7)
    rekeyed, built = tiny_index(wide_model()).rekeyed(spec), tiny_index(wide_model(), spec=spec)
    assert (rekeyed.spec, rekeyed.size) == (spec, built.size)
    queries = np.random.default_rng(0).normal(size=(4, spec.dim(8)))
    found, wanted = rekeyed.lookup(queries, 20), built.lookup(queries, 20)
    assert np.array_equal(rekeyed.numbers(found), built.numbers(wanted))
    assert np.array_equal(found.distances, wanted.distances)


def test_a_view_stays_one_when_its_keys_change(index):
    view = index.restricted(np.array([2])).rekeyed(KeySpec(borders="zero"))
    found = view.lookup(np.zeros((1, 32)), 99)
    assert set(found.sources[0]) == {2}
    assert view.size == 35


def test_keys_as_they_are_need_no_work(index):
    assert index.rekeyed(index.spec) is index


def test_what_was_not_kept_cannot_make_other_keys(model):
    codes = tiny_index(model, spec=KeySpec(space="codebook"))
    assert codes.rekeyed(KeySpec("causal-8", space="codebook")).spec.neighborhood == "causal-8"
    with pytest.raises(InputError, match="holds no encoder vectors; choose codebook"):
        codes.rekeyed(KeySpec())
    large = tiny_index(model, 30, structure="ivf")
    with pytest.raises(InputError, match=r"ivf structure are fixed .causal-4, skip, encoder.;"):
        large.rekeyed(KeySpec(borders="zero"))


def test_sources_and_token_grids_must_be_as_many(index):
    with pytest.raises(ValueError, match="5 token grids come with 4 sources"):
        create_index(
            index.grid, index.tokens, index.vectors, index.codebook, index.sources[:4], index.spec
        )


def test_positions_outside_contribute_zeros_even_where_vectors_are_not_finite():
    vectors = np.full((1, 3, 2), np.nan, np.float32)
    vectors[0, 1] = 5
    keys = gather_keys(vectors, np.array([[-1, 1]]), np.empty((1, 0), np.float32))
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
