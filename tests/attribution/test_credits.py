"""Shares against a slow loop, their text, and what strangers' texts do to both."""

import json

import numpy as np
import pytest

from arrag_engine.attribution import (
    Credit,
    Credits,
    Owed,
    drawing_credits,
    make_credits,
    owed_shares,
    trace_credits,
)
from arrag_engine.attribution.credits import ALL_TEXTS, LONGEST_TEXT
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.errors import UNPRINTABLE
from arrag_engine.faid import Faid
from arrag_engine.index import Hits, Source, SourceTable
from arrag_engine.settings import Sampling
from tests.attribution.strangers import NAMES
from tests.decode.test_raster import drawn, retriever_for
from tests.tiny import BLANK, PROMPT, tiny_adapter


def source(name, licence="CC0", origin="", sha256=""):
    return Source(name, "", 0, 0, sha256, licence, b"", origin)


def hits_of(codes, sources, distances=None):
    codes, sources = np.array(codes), np.array(sources)
    distances = np.zeros(codes.shape, np.float32) if distances is None else np.array(distances)
    return Hits(distances, codes, sources, np.zeros_like(codes))


def slow_shares(responsibility, hits, tokens, chances):
    """Sum over positions of the responsibility, shared out over the proposers."""
    shares = {}
    for i, token in enumerate(tokens):
        for k, code in enumerate(hits.codes[i]):
            number = int(hits.sources[i, k])
            if number >= 0 and code == token:
                owed = responsibility[i] * chances[i, k] / len(tokens)
                shares[number] = shares.get(number, 0) + owed
    return {number: share for number, share in shares.items() if share}


def test_shares_equal_the_slow_loop_and_miss_nothing():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 3, 30)
    hits = hits_of(rng.integers(0, 3, (30, 8)), rng.integers(-1, 5, (30, 8)))
    proposed = (hits.codes == tokens[:, None]) & (hits.sources >= 0)
    chances = rng.random((30, 8)) * proposed
    chances /= np.maximum(chances.sum(1, keepdims=True), 1e-9)
    chances *= np.where(np.arange(30) % 2, 1, 0.5)[:, None]  # some proposers are not listed
    responsibility = rng.random(30) * proposed.any(1)
    shares, unlisted = owed_shares(responsibility, hits, tokens, chances)
    assert shares == pytest.approx(slow_shares(responsibility, hits, tokens, chances))
    assert sum(shares.values()) + unlisted == pytest.approx(responsibility.sum() / 30)
    assert unlisted == pytest.approx(responsibility[::2].sum() / 60)


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


@pytest.mark.parametrize("duplicates", ["first", "sum"])
def test_only_who_proposed_a_token_is_credited(model, index, duplicates):
    """At weight 1, every looked-up token comes from a proposer: brute force over the hits."""
    retriever = retriever_for(model, index, weight=1.0, neighbours=10, duplicates=duplicates)
    [trace] = drawn(model, retriever=retriever).traces
    proposers = set()
    for i, token in enumerate(trace.tokens):
        ranks = [k for k, code in enumerate(trace.hits.codes[i]) if code == token]
        proposers.update(trace.hits.sources[i, ranks[:1] if duplicates == "first" else ranks])
    names = {credit.name for credit in trace_credits(trace).sources}
    assert names == {index.sources[int(n)].name for n in proposers if n >= 0}


def test_without_retrieval_the_model_drew_all(model):
    drawing = drawn(model, seeds=(1, 2))
    assert drawing_credits(drawing) == [Credits(), Credits()]
    assert "100.0 %  the model" in Credits().as_text()


def test_sources_that_only_an_adapter_received_are_counted_without_a_share(model, index):
    retriever = retriever_for(model, index, weight=0.0, neighbours=10)
    faid = Faid(tiny_adapter(model))
    recipe = Recipe(PROMPT, BLANK, Sampling(cfg=3.0), retriever, faid)
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
