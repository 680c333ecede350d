"""Search on a device against the index's own search, and against brute force."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrag_engine import session
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.errors import InputError
from arrag_engine.grid import BORDERS, NEIGHBORHOODS, Grid
from arrag_engine.index import KEY_SPACES, KeySpec, PatchIndex, create_index, save_index
from arrag_engine.index.keys import Keys
from arrag_engine.layers import Layer
from arrag_engine.retrieval import (
    Places,
    device_bytes,
    device_index,
    device_keys,
    device_search,
    device_source,
    make_retriever,
    on_device,
    where_faster,
)
from arrag_engine.retrieval.device_search import DeviceSearcher
from arrag_engine.settings import RetrievalOptions
from tests.tiny import tiny_index, tiny_source

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_CUDA)]
GRID = Grid(5, 7)
PLENTY = 1e12


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def make_index(spec=None, images=9, codes=40, grid=GRID, seed=0, noise=0.05, structure="flat"):
    """An index of random tokens. Few codes make many equal keys in the codebook key space, and in
    the other one if there is no noise."""
    rng = np.random.default_rng(seed)
    codebook = unit(rng.normal(size=(codes, 8)))
    tokens = rng.integers(0, codes, (images, grid.size)).astype(np.uint16)
    vectors = unit(codebook[tokens] + rng.normal(0, noise, (images, grid.size, 8)))
    sources = [tiny_source(i) for i in range(images)]
    return create_index(grid, tokens, vectors, codebook, sources, spec, structure)


def make_queries(index, count, seed=1):
    """Queries as drawing makes them: rows of the codebook, zeros for what is unknown; the first
    knows nothing."""
    rng = np.random.default_rng(seed)
    rows = np.concatenate((index.codebook, np.zeros((1, 8), np.float32)))
    known = rows[rng.integers(0, len(rows), (count, index.spec.offsets))]
    known = known.reshape(count, 8 * index.spec.offsets)
    known[:1] = 0
    places = index.spec.places(index.grid)[rng.choice(index.active, count)]
    return np.concatenate((known, places), axis=1)


def keys_of(index):
    keys = Keys(index.tokens, index.vectors, index.codebook, index.grid, index.spec)
    return keys.of_images(0, len(index.tokens))


def assert_same(found, wanted):
    for a, b in zip(found.fields, wanted.fields, strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)


def every_spec(test):
    for name, values in (
        ("neighborhood", NEIGHBORHOODS),
        ("borders", BORDERS),
        ("space", KEY_SPACES),
        ("weight", (0.0, 0.7)),
    ):
        test = pytest.mark.parametrize(name, values)(test)
    return test


@every_spec
@pytest.mark.parametrize("device", DEVICES)
def test_hits_are_those_of_the_index_to_the_last_bit(neighborhood, borders, space, weight, device):
    index = make_index(KeySpec(neighborhood, borders, space, weight))
    there, queries = device_index(index, device), make_queries(index, 20)
    for k in (1, 7, 150, 10_000):
        assert_same(there.lookup(queries, k), index.lookup(queries, k))


@every_spec
def test_hits_are_those_of_brute_force(neighborhood, borders, space, weight):
    index = make_index(KeySpec(neighborhood, borders, space, weight))
    queries, keys = make_queries(index, 5), keys_of(index).astype(np.float64)
    there = device_index(index, "cpu")
    found = there.lookup(queries, 12)
    numbers = there.numbers(found)
    for row, query in enumerate(queries.astype(np.float64)):
        distances = ((keys - query) ** 2).sum(axis=1)
        wanted = np.sort(distances)[: numbers.shape[1]]
        np.testing.assert_allclose(found.distances[row], wanted, atol=2e-5)
        np.testing.assert_allclose(distances[numbers[row]], wanted, atol=2e-5)
    sources, positions = index.locate(numbers)
    assert np.array_equal(found.codes, index.tokens[sources, positions])


@pytest.mark.parametrize("space", KEY_SPACES)
@pytest.mark.parametrize("device", DEVICES)
def test_of_equally_near_patches_the_lower_number_comes_first(space, device):
    index = make_index(KeySpec(space=space), images=200, codes=2, noise=0)
    queries, there = make_queries(index, 8), device_index(index, device)
    key_of = np.unique(keys_of(index), axis=0, return_inverse=True)[1]
    for k in (5, 64, 500):
        found = there.lookup(queries, k)
        assert_same(found, index.lookup(queries, k))
        for numbers, distances in zip(there.numbers(found), found.distances, strict=True):
            assert np.array_equal(np.lexsort((numbers, distances)), np.arange(k))
            for key in np.unique(key_of[numbers]):
                chosen = numbers[key_of[numbers] == key]
                assert np.array_equal(chosen, np.flatnonzero(key_of == key)[: len(chosen)])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_asked_is_found_as_on_the_host(data):
    draw = data.draw
    spec = KeySpec(
        draw(st.sampled_from(list(NEIGHBORHOODS))),
        draw(st.sampled_from(BORDERS)),
        draw(st.sampled_from(KEY_SPACES)),
        draw(st.sampled_from([0.0, 0.01, 3.0])),
    )
    reach = 3 if spec.neighborhood == "causal-24" else 2
    grid = Grid(draw(st.integers(reach + 1, 8)), draw(st.integers(2 * reach + 1, 9)))
    images, codes = draw(st.integers(1, 12)), draw(st.integers(1, 30))
    index = make_index(
        spec, images, codes, grid, draw(st.integers(0, 99)), draw(st.sampled_from([0, 0.1]))
    )
    numbers = st.lists(st.integers(0, images - 1), max_size=4)
    if view := draw(numbers):
        index = index.restricted(np.array(view))
    batch = draw(st.integers(0, 35))
    queries = make_queries(index, batch, draw(st.integers(0, 99)))
    asked = {
        "k": draw(st.sampled_from([0, 1, 3, 20, 130, 5000])),
        "allowed": np.array(draw(numbers), int) if draw(st.booleans()) else None,
        "without": [draw(numbers) for _ in range(batch)] if batch and draw(st.booleans()) else None,
    }
    there = device_index(index, "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_search, "SCRATCH", draw(st.sampled_from([1, 50_000, 2**28])))
        patch.setattr(device_search, "MANY", draw(st.sampled_from([0, 5, 1024])))
        patch.setattr(device_search, "PIECE", draw(st.sampled_from([1, 40, 2**18])))
        if asked["allowed"] is not None and not len(asked["allowed"]):
            with pytest.raises(InputError, match="no picture of the index is left"):
                there.lookup(queries, **asked)
            return
        assert_same(there.lookup(queries, **asked), index.lookup(queries, **asked))


@pytest.mark.parametrize("device", DEVICES)
def test_a_query_finds_the_same_in_any_batch(device):
    index = make_index(KeySpec(borders="zero"), codes=3)
    there, queries = device_index(index, device), make_queries(index, 40)
    together = there.lookup(queries, 9)
    for i in range(len(queries)):
        assert_same(there.lookup(queries[i : i + 1], 9), together.queries()[i])


@pytest.mark.parametrize("space", KEY_SPACES)
@pytest.mark.parametrize("many", [0, 30])
@pytest.mark.parametrize("piece", [7, 2**18])
@pytest.mark.parametrize("device", DEVICES)
def test_pieces_change_no_hit(space, many, piece, device, monkeypatch):
    """Of pictures that are looked at together, and of candidates that are thinned out together."""
    index = make_index(KeySpec(borders="zero", space=space), images=30, codes=3, noise=0.001)
    queries = make_queries(index, 5)
    monkeypatch.setattr(device_search, "SCRATCH", 50_000)
    monkeypatch.setattr(device_search, "MANY", many)
    monkeypatch.setattr(device_search, "PIECE", piece)
    for k in (1, 6, 90):
        assert_same(device_index(index, device).lookup(queries, k), index.lookup(queries, k))


def test_rounded_products_change_no_hit(monkeypatch):
    """PyTorch may round the factors of products to 16 bits where it was told to."""
    index = make_index(KeySpec("causal-8", "zero"), images=40, codes=5)
    queries = make_queries(index, 10)
    wanted = index.lookup(queries, 30)
    vectors = device_keys._Vectors
    add = vectors.add

    def rounded(self, distances, prepared, first):
        exact, self.vectors = self.vectors, self.vectors.bfloat16().float()
        factors, lengths = prepared
        add(self, distances, (factors.bfloat16().float(), lengths), first)
        self.vectors = exact

    monkeypatch.setattr(vectors, "add", rounded)
    for many in (0, 1024):
        monkeypatch.setattr(device_search, "MANY", many)
        assert_same(device_index(index, "cpu").lookup(queries, 30), wanted)


@pytest.mark.parametrize("space", KEY_SPACES)
def test_candidates_that_the_host_ranks_are_few(space, monkeypatch):
    """Even where nearly all patches are equally near."""
    ranked = []
    rank = device_search.DeviceSearcher._rank

    def counting(self, queries, ids, k):
        ranked.append(len(ids))
        return rank(self, queries, ids, k)

    monkeypatch.setattr(device_search.DeviceSearcher, "_rank", counting)
    index = make_index(KeySpec(space=space), images=300, codes=1, noise=0)
    index.tokens[7] = 0
    assert_same(device_index(index, "cpu").lookup(make_queries(index, 1), 8),
                index.lookup(make_queries(index, 1), 8))  # fmt: skip
    other = make_index(KeySpec(space=space), images=300, codes=500)
    device_index(other, "cpu").lookup(make_queries(other, 2)[1:], 8)
    assert ranked[0] == 8
    assert ranked[1] <= 100


def test_large_codebooks_and_codes_of_another_width():
    grid, rng = Grid(4, 5), np.random.default_rng(0)
    codebook = unit(rng.normal(size=(2**16, 3)))
    tokens = rng.integers(0, 2**16, (6, 20)).astype(np.uint16)
    tokens[0] = 2**16 - 1
    sources = [tiny_source(i) for i in range(6)]
    spec = KeySpec(borders="zero", space="codebook")
    index = create_index(grid, tokens, None, codebook, sources, spec, "flat")
    queries = rng.normal(size=(5, 12)).astype(np.float32)
    assert_same(device_index(index, "cpu").lookup(queries, 11), index.lookup(queries, 11))


@pytest.mark.parametrize("space", KEY_SPACES)
def test_an_index_without_pictures_finds_nothing(space):
    index = replace(make_index(KeySpec(space=space)), images=np.empty(0, int))
    found = device_index(index, "cpu").lookup(make_queries(index, 3), 5)
    assert_same(found, index.lookup(make_queries(index, 3), 5))
    assert found.codes.shape == (3, 0)


@pytest.mark.parametrize("space", KEY_SPACES)
def test_a_query_that_is_not_finite_finds_nothing(space):
    index = make_index(KeySpec(space=space))
    queries = make_queries(index, 3)
    queries[1] = np.nan
    found = device_index(index, "cpu").lookup(queries, 4)
    assert found.found().all(axis=1).tolist() == [True, False, True]
    assert np.isinf(found.distances[1]).all()
    assert (found.positions[1] == -1).all()


def test_a_token_that_is_no_code_is_refused():
    index = make_index(KeySpec(space="codebook"))
    index.tokens[3, 0] = 40
    with pytest.raises(InputError, match="holds code 40 of a codebook of 40: its file has changed"):
        device_index(index, "cpu").lookup(make_queries(index, 1), 4)


def test_a_change_of_the_file_is_noticed():
    class Changed:
        def check(self):
            raise InputError("the file has been written to")

    index = replace(make_index(), file=Changed())
    with pytest.raises(InputError, match="written to"):
        device_index(index, "cpu").lookup(make_queries(index, 1), 4)


def test_everything_but_the_search_is_the_index_s(model, tmp_path):
    index = tiny_index(model)
    there = device_index(index, "cpu")
    assert isinstance(there, PatchIndex)
    assert (there.grid, there.spec, there.size) == (index.grid, index.spec, index.size)
    assert there.sources is index.sources
    assert there.recall == 1.0
    options = RetrievalOptions(0.5)
    retriever = make_retriever(there, model.config.grid, index.codebook, options)
    tokens = np.random.default_rng(0).integers(0, 64, 36)
    positions = np.flatnonzero(retriever.active)
    wanted = make_retriever(index, model.config.grid, index.codebook, options)
    assert_same(retriever.lookup(tokens, positions, 6), wanted.lookup(tokens, positions, 6))
    with pytest.raises(ValueError, match="searched on a device cannot be saved"):
        save_index(there, tmp_path / "index.safetensors")


@pytest.mark.parametrize("space", KEY_SPACES)
@pytest.mark.parametrize("borders", BORDERS)
@pytest.mark.parametrize("pictures", [None, [1, 4]])
def test_the_bytes_are_those_of_the_tensors(space, borders, pictures):
    index = make_index(KeySpec("causal-8", borders, space))
    index = index if pictures is None else index.restricted(np.array(pictures))
    there = device_index(index, "cpu")
    there.lookup(make_queries(index, 1), 1)
    tensors = [t for t in vars(there._view._held).values() if isinstance(t, torch.Tensor)]
    held = sum(t.nbytes for t in tensors)
    cells = len(index.tokens if pictures is None else pictures) * (
        35 if borders == "skip" else 7 * 9
    )
    assert held >= cells * (2 if space == "codebook" else 36)
    assert 0 < device_bytes(index) - held < cells * 16 * 200 + 2 * 16 * 8 * 41 * 4 + 1300
    assert device_bytes(index.restricted(np.array([2]))) < device_bytes(index)


def test_passing_tensors_are_bounded_however_large_the_index():
    keys = Keys(np.zeros((10**5, 576), np.uint16), None, unit(np.ones((9, 8))), Grid(24, 24),
                KeySpec(space="codebook"))  # fmt: skip
    searcher = device_search.DeviceSearcher(keys, torch.device("cpu"))
    held = 10**5 * 576 * 2
    assert held < searcher.nbytes <= held + device_search.SCRATCH + 10_000


@pytest.mark.parametrize("space", KEY_SPACES)
def test_an_index_moves_where_a_quarter_of_what_is_free_holds_it(space):
    index = make_index(KeySpec(space=space))
    needed = device_bytes(index)
    assert on_device(index, "cpu", 4 * needed - 1) is index
    there = on_device(index, "cpu", 4 * needed)
    assert there.searcher.kind == "device"
    view = index.restricted(np.array([2, 5]))
    found = on_device(view, "cpu", 4 * device_bytes(view))
    assert found.searcher.kind == "device"
    assert_same(*(i.lookup(make_queries(index, 3), 99) for i in (found, view)))


@pytest.mark.parametrize("structure", ["ivf", "compact"])
def test_a_structure_that_is_not_exact_keeps_its_search_unless_asked(structure):
    flat = make_index(KeySpec(space="codebook"), images=40)
    index = make_index(KeySpec(space="codebook"), images=40, structure=structure)
    assert on_device(index, "cpu", PLENTY) is index
    there = on_device(index, "cpu", PLENTY, exact=True)
    assert_same(*(i.lookup(make_queries(flat, 9), 30) for i in (there, flat)))


def test_keys_that_are_gone_stay_with_their_structure():
    index = make_index(images=40, structure="ivf")
    assert on_device(index, "cpu", PLENTY, exact=True) is index
    with pytest.raises(ValueError, match="need the encoder's vectors"):
        device_index(index, "cpu")


def test_small_indexes_and_those_of_a_cpu_stay_where_they_are(model, monkeypatch):
    index, gpu = tiny_index(model), torch.device("cuda")
    assert where_faster(index, torch.device("cpu"), PLENTY) is index
    assert where_faster(index, gpu, PLENTY) is index
    monkeypatch.setattr(device_source, "SMALL", index.size)
    assert where_faster(index, torch.device("cpu"), PLENTY) is index
    assert where_faster(index, gpu, PLENTY).searcher.kind == "device"
    assert where_faster(index, gpu, 10) is index


def test_indexes_share_the_memory_that_is_free(model, monkeypatch):
    index, gpu = tiny_index(model), torch.device("cuda")
    monkeypatch.setattr(device_source, "SMALL", 1)
    places = Places(gpu, 5 * device_bytes(index))
    assert [places(index).searcher.kind for _ in range(3)] == ["device", "device", "flat"]
    assert Places(torch.device("cpu"), PLENTY)(index) is index


def test_a_plan_searches_where_it_is_told(model_file, monkeypatch):
    loaded = load_checkpoint(model_file, torch.float32)
    layer = Layer(tiny_index(loaded.model), only="", weight=0.5)
    plain = session.plan(loaded, "red", layers=[layer])
    placed = session.plan(loaded, "red", layers=[layer], place=lambda i: device_index(i, "cpu"))
    searches = []
    search = DeviceSearcher.search
    monkeypatch.setattr(
        DeviceSearcher, "search", lambda self, q, k: searches.append(k) or search(self, q, k)
    )
    wanted, found = (session.draw(loaded, p, [7]) for p in (plain, placed))
    assert torch.equal(wanted.tokens, found.tokens)
    drawing = len(searches)
    assert drawing > 0
    for one, other in zip(wanted.traces, found.traces, strict=True):
        assert np.array_equal(one.layers[0].hits.positions, other.layers[0].hits.positions)
    assert len(searches) == drawing  # a trace holds nothing of the device
