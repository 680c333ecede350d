"""Which structure an index gets."""

import pytest

from arrag_engine.errors import InputError
from arrag_engine.grid import Grid
from arrag_engine.index import KeySpec
from arrag_engine.index.search import STRUCTURES, build_searcher
from tests.index.search.cases import SPECS, make_keys


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_auto_is_exact_while_small_and_as_small_as_can_be_when_large(spec, monkeypatch):
    keys = make_keys(spec)
    monkeypatch.setattr("arrag_engine.index.search.choose.FLAT_LIMIT", keys.size)
    assert build_searcher(keys).kind == "flat"
    monkeypatch.setattr("arrag_engine.index.search.choose.FLAT_LIMIT", keys.size - 1)
    large = "compact" if spec.space == "codebook" else "ivf"
    assert build_searcher(keys).kind == large


@pytest.mark.parametrize("kind", STRUCTURES[1:])
def test_a_structure_can_be_chosen(kind):
    assert build_searcher(make_keys(SPECS[1], signs=kind == "bits"), kind).kind == kind


@pytest.mark.parametrize("kind", STRUCTURES)
def test_without_patches_there_is_nothing_to_train(kind):
    searcher = build_searcher(make_keys(grid=Grid(1, 4)), kind)
    assert (searcher.kind, searcher.size) == ("flat", 0)


def test_progress_tells_the_patches_done():
    told = []
    keys = make_keys(SPECS[1])
    build_searcher(keys, "compact", progress=lambda *now: told.append(now))
    assert told[-1] == (keys.size, keys.size)


def test_what_cannot_be_built_is_refused():
    with pytest.raises(InputError, match="structure is 'tree'; choose one of auto, flat"):
        build_searcher(make_keys(), "tree")
    for target in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match=f"recall target is {target}; choose"):
            build_searcher(make_keys(), "ivf", target)
    with pytest.raises(InputError, match="needs keys of the codebook key space; choose another"):
        build_searcher(make_keys(KeySpec()), "compact")


def test_only_exact_search_meets_a_target_of_1(monkeypatch):
    monkeypatch.setattr("arrag_engine.index.search.choose.FLAT_LIMIT", 0)
    assert build_searcher(make_keys()).kind != "flat"
    for kind in ("auto", "flat"):
        assert build_searcher(make_keys(), kind, 1.0).kind == "flat"
    assert build_searcher(make_keys(signs=True), "bits", 1.0).kind == "bits"
    for kind in ("ivf", "compact"):
        with pytest.raises(InputError, match=f"needs exact search, which {kind} is not"):
            build_searcher(make_keys(), kind, 1.0)


def test_a_codebook_that_16_bits_cannot_hold_is_refused(monkeypatch):
    monkeypatch.setattr("arrag_engine.index.search.compact.ROWS", 40)
    build_searcher(make_keys(SPECS[0], codes=40), "ivf")
    zero = KeySpec("causal-4", "zero", "codebook")
    monkeypatch.setattr("arrag_engine.index.search.choose.FLAT_LIMIT", 0)
    assert build_searcher(make_keys(zero, codes=40)).kind == "ivf"
    with pytest.raises(InputError, match="cannot hold 40 codes"):
        build_searcher(make_keys(zero, codes=40), "compact")


def test_more_patches_than_32_bits_count_are_refused(monkeypatch):
    monkeypatch.setattr("arrag_engine.index.search.choose.MAX_PATCHES", 100)
    with pytest.raises(InputError, match="more than the 100 of one index; build several"):
        build_searcher(make_keys(), "flat")
