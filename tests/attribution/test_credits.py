"""Shares against a slow loop, their text, and what strangers' texts do to both."""

import json
from dataclasses import replace

import pytest

from arrag_engine.attribution import (
    Credit,
    Credits,
    Owed,
    drawing_credits,
    make_credits,
    trace_credits,
)
from arrag_engine.attribution.credits import ALL_TEXTS, LONGEST_TEXT
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.errors import UNPRINTABLE
from arrag_engine.faid import Faid
from arrag_engine.index import Source, SourceTable
from arrag_engine.retrieval import layers_of
from arrag_engine.settings import Sampling
from tests.attribution.strangers import NAMES
from tests.decode.test_raster import drawn, retriever_for
from tests.tiny import BLANK, PROMPT, tiny_adapter


def source(name, licence="CC0", origin="", sha256=""):
    return Source(name, "", 0, 0, sha256, licence, b"", origin)


def drawn_layers(model, index, *options):
    """The trace of a picture of several layers."""
    layers = layers_of(*(retriever_for(model, index, **one) for one in options))
    recipe = Recipe(PROMPT, BLANK, Sampling(cfg=3.0), layers)
    return draw_pictures(model, recipe, [7]).traces[0]


def slow_shares(trace):
    """By name: the responsibility of each layer, shared out over the hits with the token."""
    shares = {}
    for layer, responsibility in zip(trace.layers, trace.responsibilities, strict=True):
        for i, token in enumerate(trace.tokens):
            codes, given = layer.hits.codes[i], layer.shares[i]
            total = sum(q for q, code in zip(given, codes, strict=True) if code == token)
            for k, code in enumerate(codes):
                if code == token and total:
                    name = layer.source.sources[int(layer.hits.sources[i, k])].name
                    owed = responsibility[i] * given[k] / total / trace.grid.size
                    shares[name] = shares.get(name, 0) + owed
    return {name: share for name, share in shares.items() if share}


@pytest.mark.parametrize("duplicates", ["first", "sum"])
def test_shares_equal_the_slow_loop(model, index, duplicates):
    options = {"neighbours": 10, "duplicates": duplicates}
    trace = drawn_layers(
        model, index, {"weight": 0.5, **options}, {"weight": 0.3, "temperature": 0.5}
    )
    wanted = slow_shares(trace)
    credits = trace_credits(trace)
    assert {c.name: c.share for c in credits.sources} == pytest.approx(wanted)
    assert len(wanted) > 1


def test_given_tokens_and_what_no_candidate_proposed_have_shares_of_their_own(model, index):
    trace = drawn_layers(model, index, {"weight": 0.9, "neighbours": 10})
    component = trace.component.copy()
    component[:9] = -2  # kept
    [layer] = trace.layers
    weight, codes = layer.weight.copy(), layer.hits.codes.copy()
    weight[:9] = 0
    codes[20:] = -5
    hits = replace(layer.hits, codes=codes)
    trace = replace(trace, component=component, layers=(replace(layer, weight=weight, hits=hits),))
    credits = trace_credits(trace)
    assert credits.kept == 9 / 36
    assert credits.unlisted == pytest.approx(trace.responsibility[20:].sum() / 36)
    assert credits.unlisted > 0.1
    owed = sum(credit.share for credit in credits.sources)
    assert owed + credits.unlisted + credits.model + credits.kept == pytest.approx(1)
    assert " 25.0 %  tokens of the picture that was given" in credits.as_text()
    assert "sources that the trace does not list" in credits.as_text()


def test_credits_of_a_drawing_add_up(model, index):
    [trace] = drawn(model, retriever=retriever_for(model, index, neighbours=10)).traces
    credits = trace_credits(trace)
    owed = sum(credit.share for credit in credits.sources)
    assert owed + credits.unlisted == pytest.approx(trace.responsibility.sum() / trace.grid.size)
    assert owed + credits.unlisted + credits.model + credits.kept == pytest.approx(1)
    assert owed > 0.1
    known = {(s.name, s.origin, s.licence, s.sha256) for s in index.sources}
    assert {(c.name, c.origin, c.licence, c.sha256) for c in credits.sources} <= known
    shares = [credit.share for credit in credits.sources]
    assert shares == sorted(shares, reverse=True)
    assert len(credits.sources) <= credits.looked_up <= len(index.sources)


def test_without_retrieval_the_model_drew_all(model):
    drawing = drawn(model, seeds=(1, 2))
    assert drawing_credits(drawing) == [Credits(), Credits()]
    assert "100.0 %  the model" in Credits().as_text()


def test_sources_that_only_an_adapter_received_are_counted_without_a_share(model, index):
    retriever = retriever_for(model, index, weight=0.0, neighbours=10)
    faid = Faid(tiny_adapter(model))
    recipe = Recipe(PROMPT, BLANK, Sampling(cfg=3.0), layers_of(retriever), faid)
    [credits] = drawing_credits(draw_pictures(model, recipe, [7]))
    assert (credits.sources, credits.model) == ((), 1)
    assert credits.looked_up == len(index.sources)
    assert "5 more sources were looked up; no token is owed to them." in credits.as_text()


def test_rows_with_the_same_facts_are_one_source_in_all_layers():
    crops = SourceTable.from_sources([source("a"), source("a"), source("b", "MIT")])
    other = SourceTable.from_sources([source("a")])
    credits = make_credits([Owed(crops, {0: 0.1, 1: 0.2, 2: 0.25}), Owed(other, {0: 0.05})], 0.3)
    assert [(c.name, c.licence, pytest.approx(c.share)) for c in credits.sources] == [
        ("a", "CC0", 0.35),
        ("b", "MIT", 0.25),
    ]
    assert (credits.kept, credits.model) == (0.3, pytest.approx(0.1))


def test_small_shares_are_summed_up_in_the_text_and_kept_in_the_data():
    small = [Credit(f"small {i}", "", "CC0", "", 0.004) for i in range(50)]
    credits = Credits((Credit("large", "", "MIT", "ab" * 32, 0.5), *small), model=0.3, looked_up=60)
    text = credits.as_text()
    assert " 20.0 %  50 more sources, each below 0.5 %" in text
    assert f" 50.0 %  large, licence MIT, sha256 {'ab' * 32}" in text
    assert "9 more sources were looked up; no token is owed to them." in text
    assert "small 0" not in text
    assert len(json.loads(credits.as_json())["sources"]) == 51


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_hostile_name_is_one_printable_line_and_whole_in_the_data(name):
    credits = Credits((Credit(name, name, name, "", 1.0),), model=0.0)
    text = credits.as_text()
    assert len(text.splitlines()) == 3
    assert not UNPRINTABLE.search(text)
    text.encode()
    assert len(text) < 1000
    data = credits.as_json()
    assert data.isascii()
    [read] = json.loads(data)["sources"]
    assert read["name"] == (name if len(name) <= LONGEST_TEXT else f"{name[: LONGEST_TEXT - 1]}…")


def test_many_long_texts_stay_small_enough_for_readers_of_png():
    many = tuple(Credit("写" * 10_000, "", "", str(i), 1e-5) for i in range(30_000))
    data = Credits(many).as_json()
    assert len(data) < 6 * ALL_TEXTS + 200 * len(many)
    assert len(json.loads(data)["sources"]) == 30_000
