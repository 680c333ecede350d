"""A trace on disk: what is written is read again, whatever is damaged is refused."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from arrag_engine.decode import Recipe, draw_pictures, is_trace, load_trace, save_trace
from arrag_engine.decode.trace import Cost, Trace, TraceLayer
from arrag_engine.decode.trace_file import LARGEST, precision
from arrag_engine.errors import InputError
from arrag_engine.grid import NEIGHBORHOODS, Grid
from arrag_engine.index import Hits, KeySpec, PatchIndex, SourceTable
from arrag_engine.index.container import FINGERPRINT, HASH, TensorFile, write_tensors
from arrag_engine.retrieval import Steering, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling
from scripts.fuzz_mutate import mutated
from tests import slow
from tests.tiny import BLANK, PAD_ID, PROMPT, tiny_index

SAMPLING = Sampling(cfg=3.0)
WEIGHTS = (0.5, 0.3)


@pytest.fixture(scope="module")
def indexes(model):
    return tiny_index(model, 5, 0), tiny_index(model, 4, 1)


@pytest.fixture(scope="module")
def trace(model, indexes):
    """Of two layers, the second of which works in the lower half only."""
    codebook = model.vq.quantize.rows(torch.device("cpu")).numpy()
    below = Steering(region=np.array([[0.0], [1.0]]))
    layers = [
        make_retriever(index, model.config.grid, codebook, RetrievalOptions(weight, neighbours=10))
        if steering is None
        else make_retriever(
            index,
            model.config.grid,
            codebook,
            RetrievalOptions(weight, neighbours=7),
            steering=steering,
        )
        for index, weight, steering in zip(indexes, WEIGHTS, (None, below), strict=True)
    ]
    layers[1] = replace(layers[1], number=2)
    recipe = Recipe(PROMPT, BLANK, SAMPLING, layers)
    return draw_pictures(model, recipe, [7]).traces[0]


@pytest.fixture
def file(tmp_path, trace):
    path = tmp_path / "a.safetensors"
    save_trace(trace, path)
    return path


def test_responsibilities_are_those_of_bayes(model, indexes, trace):
    """P(component | token) by counting out the mixture of a slow reference."""
    offsets, codebook = NEIGHBORHOODS["causal-4"], indexes[0].codebook
    tokens = trace.tokens.tolist()
    for i, token in enumerate(tokens):
        p_model = slow.p_model(model, PROMPT, PAD_ID, tokens[:i], SAMPLING)[token]
        joint = []
        for layer, index, weight in zip(trace.layers, indexes, WEIGHTS, strict=True):
            q = slow.p_retrieved(index, codebook, offsets, tokens[:i], i, layer.options)
            works = q is not None and (index is indexes[0] or i >= 18)
            joint.append(weight * float(q[token]) if works else 0.0)
            assert layer.weight[i] == pytest.approx(weight if works else 0)
        joint.append((1 - trace.weight[i]) * float(p_model))
        for j in range(2):
            assert trace.responsibilities[j, i] == pytest.approx(joint[j] / sum(joint), abs=1e-4)


def same(one, other):
    assert (one.grid, one.cost) == (other.grid, other.cost)
    for name in ("tokens", "component"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    for name in ("p_model", "responsibilities"):
        assert np.allclose(getattr(one, name), getattr(other, name), atol=1e-6)
    for mine, its in zip(one.layers, other.layers, strict=True):
        assert (mine.options, mine.number) == (its.options, its.number)
        for a, b in zip(mine.hits.fields, its.hits.fields, strict=True):
            assert np.array_equal(a, b)
        for name in ("weight", "shares", "p_retrieval"):
            assert np.allclose(getattr(mine, name), getattr(its, name), atol=1e-6)


def test_a_trace_is_read_as_it_was_written(trace, file, indexes):
    again = load_trace(file, indexes[::-1])
    same(again, trace)
    assert [one.source for one in again.layers] == list(indexes)
    assert np.allclose(again.source_shares(0), trace.source_shares(0), atol=1e-6)
    assert is_trace(file)


def test_a_trace_without_layers(tmp_path, model):
    trace = draw_pictures(model, Recipe(PROMPT, BLANK, SAMPLING), [7]).traces[0]
    save_trace(trace, tmp_path / "a.safetensors")
    same(load_trace(tmp_path / "a.safetensors"), trace)


def test_a_view_or_other_keys_are_the_same_index(indexes):
    [index, other] = indexes
    assert index.restricted(np.array([1, 2])).identity() == index.identity()
    assert index.rekeyed(KeySpec("causal-8")).identity() == index.identity()
    named = replace(index, sources=SourceTable.from_sources(reversed(list(index.sources))))
    assert len({one.identity() for one in (index, other, named)}) == 3


def test_a_trace_without_its_index_is_one_sentence(file, indexes):
    with pytest.raises(InputError, match=r"an index of 4 pictures .* not among the 1 given; load"):
        load_trace(file, indexes[:1])


def test_other_files_are_refused(tmp_path, index_file, file, indexes):
    with pytest.raises(InputError, match="is not a trace"):
        load_trace(index_file, indexes)
    with pytest.raises(InputError, match="there is no trace file"):
        load_trace(tmp_path / "b.safetensors", indexes)
    file.write_bytes(file.read_bytes().replace(b'"version":"1"', b'"version":"2"'))
    with pytest.raises(InputError, match="has trace version '2', this program reads 1"):
        load_trace(file, indexes)
    assert not is_trace(index_file)


def test_damaged_files_are_refused_or_say_the_same(file, indexes, trace, pytestconfig):
    """Some damage changes nothing, such as a field that no tensor has."""
    data, refused = file.read_bytes(), 0
    for seed in range(pytestconfig.getoption("mutations")):
        damaged = mutated(data, random.Random(seed))
        file.write_bytes(damaged)
        try:
            again = load_trace(file, indexes)
        except InputError as error:
            assert "\n" not in str(error).strip()  # noqa: PT017
            refused += 1
        else:
            same(again, trace)
    assert refused > pytestconfig.getoption("mutations") / 2


def forge(file, change):
    """Change tensors and header fields, and make the hashes anew."""
    opened = TensorFile(file)
    tensors = {name: opened.in_memory(name) for name in opened.names}
    facts = {n: t for n, t in opened.header.items() if not n.startswith((HASH, FINGERPRINT))}
    write_tensors(file, *change(tensors, facts))


FORGERIES = {
    "a source beyond the index": ("layer.0.sources", 5, "lies in no picture of the 5"),
    "a negative source": ("layer.0.sources", -2, "lies in no picture"),
    "a place beyond the grid": ("layer.0.places", 36, "lies outside its picture"),
    "a distance below 0": ("layer.0.distances", -1, "is no distance"),
    "no number": ("layer.0.distances", np.nan, "is no distance"),
    "a weight above 1": ("layer.0.weight", 1.5, "outside 0 to 1"),
    "weights above 1 together": ("layer.0.weight", 0.9, "exceed 1 together"),
    "a share that is no number": ("layer.1.shares", np.nan, "outside 0 to 1"),
    "a code below 0": ("tokens", -1, "no such code or layer"),
    "a layer that is not there": ("component", 2, "no such code or layer"),
    "another responsibility": ("layer.0.responsibility", 0.123, "do not follow"),
}


@pytest.mark.parametrize(("name", "value", "sentence"), FORGERIES.values(), ids=FORGERIES)
def test_values_that_no_drawing_makes_are_refused(file, indexes, name, value, sentence):
    def change(tensors, facts):
        tensors[name] = np.full_like(tensors[name], value)
        return tensors, facts

    forge(file, change)
    with pytest.raises(InputError, match=sentence):
        load_trace(file, indexes)


HEADERS = {
    "no grid": ("grid", "x", "grid 'x'"),
    "another grid": ("grid", "5x6", "tokens is int32 36, expected int32 30"),
    "no list": ("layers", "{}", "no list"),
    "no JSON": ("layers", "[", "no JSON"),
    "fewer layers": ("layers", "[]", "not those of its layers"),
    "other facts": ("layers", "[{}, {}]", "other facts than"),
    "no number": ("passes", "many", "invalid literal"),
    "endless": ("seconds", "inf", "no such numbers"),
}


@pytest.mark.parametrize(("name", "value", "sentence"), HEADERS.values(), ids=HEADERS)
def test_headers_that_no_trace_has_are_refused(file, indexes, name, value, sentence):
    forge(file, lambda tensors, facts: (tensors, facts | {name: value}))
    with pytest.raises(InputError, match=sentence):
        load_trace(file, indexes)


def test_options_out_of_range_are_refused(file, indexes):
    def change(tensors, facts):
        layers = json.loads(facts["layers"])
        layers[0]["options"]["temperature"] = -1
        return tensors, facts | {"layers": json.dumps(layers)}

    forge(file, change)
    with pytest.raises(InputError, match="options of a layer are out of range"):
        load_trace(file, indexes)


def large_trace(side, candidates):
    """A trace of a large picture, with hits in one source."""
    grid, shape = Grid(side, side), (side * side, candidates)
    tokens = np.zeros((1, grid.size), np.uint16)
    index = PatchIndex(
        *(grid, tokens, None, np.ones((1, 1), np.float32), SourceTable.unknown(1), KeySpec()),
        None,  # type: ignore[arg-type]
    )
    distances = np.random.default_rng(0).uniform(0, 8, shape).astype(np.float32)
    zeros = np.zeros(shape, np.int64)
    hits = Hits(np.sort(distances), zeros, zeros, zeros + 3)
    half = np.full(grid.size, 0.5)
    shares = np.full(shape, 1 / candidates)
    layer = TraceLayer(index, RetrievalOptions(), half, hits, shares, half)
    drawn = np.zeros(grid.size, np.int64)
    return Trace(grid, drawn, drawn - 1, half, (layer,), Cost(1, 1.0)), index


@pytest.mark.parametrize(("side", "kept"), [(24, 64), (80, 59), (256, 3)])
def test_a_picture_and_layer_has_at_most_4_megabytes(tmp_path, side, kept):
    trace, index = large_trace(side, 64)
    path = tmp_path / "a.safetensors"
    save_trace(trace, path)
    assert path.stat().st_size <= LARGEST
    again = load_trace(path, [index]).layers[0]
    assert again.hits.codes.shape == (side * side, kept)
    assert np.allclose(again.hits.distances, trace.layers[0].hits.distances[:, :kept], atol=5e-3)


def test_full_precision_is_kept_while_it_fits():
    assert precision(576, 64) == (np.float32, 64)
    assert precision(70 * 70, 64)[0] is np.float16
