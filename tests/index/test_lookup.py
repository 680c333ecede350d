"""An index in shards against the same pictures in one file."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.errors import InputError
from arrag_engine.grid import Grid
from arrag_engine.index import (
    Hits,
    KeySpec,
    Source,
    create_index,
    open_lookup,
    save_index,
    save_shards,
)
from arrag_engine.index.lookup import merged
from arrag_engine.retrieval import Steering, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling
from tests.index.search.cases import make_keys, make_queries
from tests.tiny import tiny_index

SPECS = [KeySpec(), KeySpec("causal-4", "zero", "codebook", 0.5)]
CUTS = [(0, 5, 6, 13), (0, 12, 13)]
CAPTIONS = ("a red car", "a car", "two owls", "a red owl on a car", "")


def parts_of(index, cuts, structure="flat"):
    """The pictures of an index between cuts, each part an index."""
    for first, last in pairwise(cuts):
        some = slice(first, last)
        vectors = None if index.vectors is None else index.vectors[some]
        yield create_index(
            index.grid, index.tokens[some], vectors, index.codebook, index.sources[some],
            index.spec, structure,
        )  # fmt: skip


def make_whole(spec=SPECS[0], codes=5, structure="flat", signs=False):
    """An index of 13 pictures; few codes make many patches equally near."""
    keys = make_keys(spec, 13, Grid(5, 6), codes, signs=signs)
    sources = [
        Source(f"{i}.png", CAPTIONS[i % 5], 9, 9, "", "CC0" if i % 2 else "", b"")
        for i in range(13)
    ]
    arrays = (keys.tokens, keys.vectors, keys.codebook)
    return create_index(keys.grid, *arrays, sources, spec, structure), make_queries(keys, 9)


@pytest.fixture(params=CUTS, ids=["three", "two"])
def both(request, tmp_path):
    """(an index, the same in shards, queries)."""
    index, queries = make_whole()
    save_shards(tmp_path / "a.json", parts_of(index, request.param))
    return index, open_lookup(tmp_path / "a.json"), queries


def same(one, other):
    for a, b in zip(one.fields, other.fields, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.array_equal(a, b)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("codes", [2, 40])
@pytest.mark.parametrize("k", [1, 3, 25, 99, 100, 150, 5000])
def test_exact_search_in_shards_finds_what_one_file_finds(spec, codes, k, tmp_path):
    """Ties and more neighbours than a shard has patches included."""
    index, queries = make_whole(spec, codes)
    for number, cuts in enumerate(CUTS):
        save_shards(tmp_path / f"{number}.json", parts_of(index, cuts))
        sharded = open_lookup(tmp_path / f"{number}.json")
        assert (sharded.size, sharded.pictures, sharded.spec) == (index.size, 13, spec)
        same(sharded.lookup(queries, k), index.lookup(queries, k))


def test_search_by_bits_in_shards(tmp_path):
    spec = KeySpec("ring-8", "zero", "codebook")
    index, queries = make_whole(spec, 9, "bits", signs=True)
    save_shards(tmp_path / "a.json", parts_of(index, CUTS[0], "bits"))
    sharded = open_lookup(tmp_path / "a.json")
    queries = np.sign(queries)
    queries[0, :8] = np.nan
    assert sharded.partial
    same(sharded.lookup(queries, 40), index.lookup(queries, 40))
    same(sharded.lookup(queries, 40, complete=True), index.lookup(queries, 40, complete=True))


def test_signs_are_searched_by_bits_in_shards(tmp_path):
    spec = KeySpec("ring-8", "zero", "codebook")
    index, queries = make_whole(spec, 9, signs=True)
    save_shards(tmp_path / "a.json", parts_of(index, CUTS[0]))
    sharded = open_lookup(tmp_path / "a.json")
    assert not sharded.partial
    bits = sharded.by_bits()
    assert bits.partial
    queries = np.sign(queries)
    queries[0, :8] = np.nan
    same(bits.lookup(queries, 40), index.by_bits().lookup(queries, 40))


def test_allowed_pictures_and_pictures_left_out(both):
    index, sharded, queries = both
    for allowed in (np.array([2]), np.array([12, 3, 5]), np.arange(13)):
        same(sharded.lookup(queries, 30, allowed), index.lookup(queries, 30, allowed))
    without = [[], [4, 5], [12], [0, 1, 2, 3, 4, 5], *([[]] * 5)]
    same(
        sharded.lookup(queries, 30, without=without),
        index.lookup(queries, 30, without=without),
    )
    with pytest.raises(InputError, match="no picture of the index is left"):
        sharded.lookup(queries, 3, np.array([], int))


@pytest.mark.parametrize(
    "words",
    [["car"], ["cars", "red"], ["owl", "in", "a", "wood"], ["a"], ["no", "such"], []],
    ids=" ".join,
)
def test_the_rarest_words_are_those_of_all_shards(both, words):
    index, sharded, queries = both
    (rarest, view), (found, part) = index.about(words), sharded.about(words)
    assert (rarest, view is None) == (found, part is None)
    if view is not None:
        assert (part.pictures, part.size) == (view.pictures, view.size)
        same(part.lookup(queries, 20), view.lookup(queries, 20))


@pytest.mark.parametrize("pattern", ["car", "*.png", "2.png", "RED"])
def test_pictures_that_match(both, pattern):
    index, sharded, queries = both
    view, part = index.matching(pattern), sharded.matching(pattern)
    assert part.pictures == view.pictures
    assert sharded.matches([pattern, "none"]) == index.matches([pattern, "none"])
    same(part.lookup(queries, 30), view.lookup(queries, 30))


def test_nothing_that_matches_in_any_shard_is_one_sentence(both):
    for lookup in both[:2]:
        with pytest.raises(InputError, match="of the 13 pictures in the index matches 'boat'"):
            lookup.matching("boat")
        with pytest.raises(InputError, match="no picture of the index is left"):
            lookup.filtered(["boat"], [])


@pytest.mark.parametrize(
    ("include", "exclude"), [(["car"], []), ([], ["owl"]), (["car", "=2.png"], ["red"])]
)
def test_sources_to_include_and_exclude(both, include, exclude):
    index, sharded, queries = both
    view, part = index.filtered(include, exclude), sharded.filtered(include, exclude)
    assert part.pictures == view.pictures
    same(part.lookup(queries, 30), view.lookup(queries, 30))
    assert part.view != sharded.view
    assert part.view == sharded.filtered(include, exclude).view


def test_restrictions_add_up_and_keys_can_be_others(both):
    index, sharded, queries = both
    other = KeySpec("causal-4", "zero", "codebook")
    view = index.about(["car"])[1].filtered([], ["owl"]).rekeyed(other)
    part = sharded.about(["car"])[1].filtered([], ["owl"]).rekeyed(other)
    assert part.spec == other
    assert (part.pictures, part.size) == (view.pictures, view.size)
    same(part.lookup(queries, 60), view.lookup(queries, 60))
    same(sharded.lookup(queries, 60), index.lookup(queries, 60))


def test_keys_that_one_file_cannot_have_shards_cannot_have(tmp_path):
    index, _ = make_whole(SPECS[1])
    save_shards(tmp_path / "a.json", parts_of(index, CUTS[0]))
    with pytest.raises(InputError, match="was built in the codebook key space"):
        open_lookup(tmp_path / "a.json").rekeyed(KeySpec())


def test_pictures_tokens_and_facts_are_those_of_one_file(both):
    index, sharded, _ = both
    assert len(sharded.sources) == len(sharded.tokens) == 13
    assert list(sharded.sources) == list(index.sources)
    assert sharded.sources[-1] == index.sources[-1]
    assert sharded.sources.licence_counts() == index.sources.licence_counts()
    numbers, places = np.array([[12], [0], [5], [12]]), np.array([[3, 2, 29]])
    assert np.array_equal(sharded.tokens[numbers, places], index.tokens[numbers, places])
    assert np.array_equal(sharded.tokens[numbers[:, 0]], index.tokens[numbers[:, 0]])
    assert (sharded.recall, sharded.structure, sharded.partial) == (1.0, "flat", False)
    with pytest.raises(IndexError):
        sharded.sources[13]


def test_a_model_that_does_not_fit_is_refused(both):
    index, sharded, _ = both
    sharded.check_fits(index.grid, index.codebook)
    with pytest.raises(InputError, match="built for a 5x6 grid, the model draws 6x6"):
        sharded.check_fits(Grid(6, 6), index.codebook)
    with pytest.raises(InputError, match="built with another VQ"):
        sharded.check_fits(index.grid, index.codebook[::-1])


def test_hits_are_merged_by_distance_then_source_then_position():
    inf = np.inf
    one = Hits(
        np.array([[1, 2, inf]], np.float32),
        *(np.array([row]) for row in ([7, 7, -1], [4, 0, -1], [5, 5, -1])),
    )
    other = Hits(
        np.array([[1, 1, 2]], np.float32),
        *(np.array([row]) for row in ([8, 8, 8], [0, 0, 1], [6, 2, 0])),
    )
    hits = merged([one, other], np.array([0, 4]), 6)
    assert hits.distances.tolist() == [[1, 1, 1, 2, 2, inf]]
    assert hits.sources.tolist() == [[4, 4, 4, 0, 5, -1]]
    assert hits.positions.tolist() == [[2, 5, 6, 5, 0, -1]]
    assert hits.codes.tolist() == [[8, 7, 8, 7, 8, -1]]


@pytest.mark.parametrize(
    "steering", [None, Steering(copy_limit=1), Steering(max_distance=3.0)], ids=str
)
def test_the_same_seed_draws_the_same_tokens(model, tmp_path, steering):
    index = tiny_index(model, 9)
    save_index(index, tmp_path / "whole.safetensors")
    save_shards(tmp_path / "a.json", parts_of(index, (0, 2, 3, 9)))
    codebook = model.vq.codebook(model.device)
    drawn = []
    for name in ("whole.safetensors", "a.json"):
        source = open_lookup(tmp_path / name)
        _, source = source.about(["picture"])
        options = RetrievalOptions(0.7, neighbours=20)
        retriever = make_retriever(source, model.grid, codebook, options, steering=steering)
        recipe = Recipe([1, 2, 3], [1, 0, 3], Sampling(), (retriever,))
        drawn.append(draw_pictures(model, recipe, [5, 6], 4))
    assert np.array_equal(drawn[0].tokens, drawn[1].tokens)
    for one, other in zip(drawn[0].traces, drawn[1].traces, strict=True):
        same(one.layers[0].hits, other.layers[0].hits)
        assert one.position_facts(9) == other.position_facts(9)


def test_a_shard_that_changes_ends_the_look_up(both, monkeypatch):
    _, sharded, queries = both

    def gone():
        raise InputError("the file has changed")

    index = sharded.shards[1].index
    changed = replace(index, file=type("File", (), {"check": staticmethod(gone)}))
    sharded.shards[1]._views = {sharded.view: changed}
    with pytest.raises(InputError, match="the file has changed"):
        sharded.lookup(queries, 3)
