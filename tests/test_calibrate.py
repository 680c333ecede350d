"""The calibrated weight: fitted, stored, refused where it does not fit, and drawn exactly."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrag_engine.calibrate import FLOOR, HARM, Observations, fit, observe, own_pictures
from arrag_engine.captions import everyday_captions
from arrag_engine.decode import Kept, Recipe, draw_pictures
from arrag_engine.decode.noise import Noise, draw
from arrag_engine.errors import InputError
from arrag_engine.index import (
    EVIDENCE,
    Calibration,
    Hits,
    evidence,
    load_index,
    merge_indexes,
    save_index,
)
from arrag_engine.index.calibration import CLOSE, NEAREST
from arrag_engine.likelihood import model_probabilities, retrieve_truth
from arrag_engine.models.janus.prompt import PromptEncoder
from arrag_engine.retrieval import Asked, Retriever, layers_of, make_retriever, mix
from arrag_engine.settings import RetrievalOptions, Sampling
from tests.tiny import BLANK, PAD_ID, PROMPT, tiny_index, tiny_tokenizer

WEIGHTS = (0.8, -0.4, 0.6, 1.5, -0.2, 0.7)
CALIBRATION = Calibration(WEIGHTS, 0.9, 0.05, 64, "first", 1.0, floor=0.2)
AUTO = RetrievalOptions("auto")


@pytest.fixture(scope="module")
def calibrated(index):
    return replace(index, calibration=CALIBRATION)


def retrieval(model, index, options=AUTO):
    codebook = model.vq.codebook(model.device)
    return make_retriever(index, model.config.grid, codebook, options)


def slow_evidence(distances, codes):
    """Of one query's found neighbours, nearest first."""
    distances, codes = distances[:NEAREST], codes[:NEAREST]
    if not distances:
        return None
    logs = [np.log(d + CLOSE) for d in distances]
    shares = [codes.count(c) / len(codes) for c in codes]
    surprise = -sum(p * np.log(p) for p in {c: codes.count(c) / len(codes) for c in codes}.values())
    return [1.0, logs[0], np.mean(logs) - logs[0], shares[0], surprise]


@given(
    st.lists(
        st.lists(st.tuples(st.floats(0, 50, width=32), st.integers(0, 5)), max_size=20), min_size=1
    ),
    st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_evidence_is_what_it_says(queries, unknown):
    queries = [sorted(q) for q in queries]
    width = max(map(len, queries)) + 1
    distances = np.full((len(queries), width), np.inf, np.float32)
    codes, ids = np.full((len(queries), width), -1), np.full((len(queries), width), -1)
    for row, query in enumerate(queries):
        for column, (distance, code) in enumerate(query):
            distances[row, column], codes[row, column], ids[row, column] = distance, code, column
    hits = Hits(distances, codes, ids, ids)
    told = evidence(hits, unknown)
    weights = CALIBRATION.weigh(hits, unknown)
    for row, query in enumerate(queries):
        slow = slow_evidence([d for d, _ in query], [c for _, c in query])
        if slow is None:
            assert weights[row] == 0
            continue
        slow.append(float(unknown))
        assert told[row] == pytest.approx(slow, abs=1e-6)
        expected = 0.9 / (1 + np.exp(-np.dot(WEIGHTS, slow)))
        assert weights[row] == pytest.approx(expected if expected >= 0.2 else 0)


@pytest.mark.parametrize("window", [1, 5])
def test_drawing_with_auto_equals_drawing_by_hand(model, calibrated, window):
    """Token by token: the component first, then the token, all from the position's own noise."""
    seed, sampling = 11, Sampling(cfg=1.0)
    mine = retrieval(model, calibrated)
    tokens = np.zeros(36, np.int64)
    taken = 0
    for i in range(36):
        noise = Noise(seed, i, 64)
        p = model_probabilities(model, PROMPT, BLANK, tokens)[i]
        if mine.active[i]:
            [proposal] = mine.propose([Asked(tokens, np.array([i]))])
            share = CALIBRATION.weigh(proposal.hits, False)[0]
            if noise.uniform < share:
                p, taken = mine.distribution(proposal, 64), taken + 1
        tokens[i] = draw(p, noise)
    drawing = draw_pictures(model, Recipe(PROMPT, BLANK, sampling, layers_of(mine)), [seed], window)
    assert np.array_equal(drawing.tokens.flatten().numpy(), tokens)
    [trace] = drawing.traces
    assert 0 < taken == trace.from_retrieval.sum() < mine.active.sum()
    assert len(np.unique(trace.weight[mine.active])) > 3
    assert (trace.weight[~mine.active] == 0).all()


def test_without_noise_the_whole_mixture_counts(model, calibrated):
    mine = retrieval(model, calibrated)
    greedy = Sampling(cfg=1.0, temperature=0)
    drawing = draw_pictures(model, Recipe(PROMPT, BLANK, greedy, layers_of(mine)), [0])
    tokens = drawing.tokens.flatten().numpy()
    p = model_probabilities(model, PROMPT, BLANK, tokens, Sampling(1.0))
    for i in np.flatnonzero(mine.active):
        [proposal] = mine.propose([Asked(tokens, np.array([int(i)]))])
        whole = mix(p[i], mine.distribution(proposal, 64), mine.weight(proposal, int(i)))
        assert tokens[i] == whole.argmax()


def test_auto_needs_a_calibration_for_the_same_settings(model, index, calibrated):
    with pytest.raises(InputError, match="not calibrated"):
        retrieval(model, index)
    for change in ({"temperature": 0.1}, {"neighbours": 8}, {"duplicates": "sum"}, {"top_p": 0.5}):
        with pytest.raises(InputError, match="was calibrated for"):
            retrieval(model, calibrated, replace(AUTO, **change))
    with pytest.raises(InputError, match="choose a number, 0 to 1, or auto"):
        RetrievalOptions("always")


def test_a_calibration_survives_a_file_and_only_the_same_keys(calibrated, tmp_path):
    save_index(calibrated, tmp_path / "i.safetensors")
    again = load_index(tmp_path / "i.safetensors")
    assert again.calibration == CALIBRATION
    assert again.restricted(np.arange(5)).calibration == CALIBRATION
    assert again.restricted(np.array([0, 2])).calibration is None
    other = replace(again.spec, neighborhood="causal-8")
    assert again.rekeyed(other).calibration is None


@pytest.mark.parametrize(
    "change",
    [
        {"weights": [1.0]},
        {"weights": [float("nan")] * len(EVIDENCE)},
        {"weights": None},
        {"ceiling": 2},
        {"neighbours": "many"},
        {"floor": -0.1},
        {"floor": "low"},
    ],
)
def test_a_damaged_calibration_is_refused(change):
    facts = json.loads(CALIBRATION.to_json()) | change
    with pytest.raises(ValueError, match="its calibration"):
        Calibration.from_json(json.dumps(facts))
    for text in ("", "[]", "{}"):
        with pytest.raises(ValueError, match="its calibration"):
            Calibration.from_json(text)


def test_a_calibration_of_the_first_kind_hears_everything_and_asks_for_no_words():
    facts = json.loads(CALIBRATION.to_json())
    del facts["floor"], facts["weights"][-1]
    first = replace(CALIBRATION, floor=0.0, weights=(*WEIGHTS[:-1], 0.0))
    assert Calibration.from_json(json.dumps(facts)) == first


@given(
    st.lists(st.floats(-3, 3), min_size=6, max_size=6),
    st.lists(st.tuples(st.floats(0, 50, width=32), st.integers(0, 5)), min_size=1, max_size=20),
    st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_no_weight_is_larger_than_the_largest(weights, query, unknown):
    calibration = replace(CALIBRATION, weights=tuple(weights))
    distances, codes = zip(*sorted(query), strict=True)
    found = Hits(np.float32([distances]), *[np.array([codes])] * 3)
    assert calibration.weigh(found, unknown)[0] <= calibration.largest(unknown)


def test_a_prompt_that_cannot_reach_the_floor_is_drawn_without_retrieval(model, calibrated):
    """Not a single look-up, and the same picture; one with unknown words is another matter."""
    shy = replace(CALIBRATION, weights=(-12.0, -0.4, 0.0, 1.5, -0.2, 14.0), floor=0.02)
    mine = retrieval(model, replace(calibrated, calibration=shy))
    assert shy.largest(False) == 0 < shy.largest(True)
    plain = draw_pictures(model, Recipe(PROMPT, BLANK, Sampling(1.0)), [3, 4])
    silent = draw_pictures(model, Recipe(PROMPT, BLANK, Sampling(1.0), layers_of(mine)), [3, 4])
    assert torch.equal(silent.tokens, plain.tokens)
    assert not any(trace.layers[0].hits.found().any() for trace in silent.traces)
    asking = replace(mine, unknown_words=True)
    told = draw_pictures(model, Recipe(PROMPT, BLANK, Sampling(1.0), layers_of(asking)), [3, 4])
    assert not torch.equal(told.tokens, plain.tokens)
    assert told.traces[0].from_retrieval.any()


def test_unknown_words_part_what_the_model_knows_from_what_it_does_not():
    """Neighbours that look alike in both: what the prompt says decides."""
    seen, known = made_observations(True, unknown=True), known_observations(0.0)
    found = fit(seen, RetrievalOptions(), known=known)
    assert found.spoiled <= HARM
    assert found.bits_auto < fit(seen, RetrievalOptions()).bits_auto + 0.1


def test_what_lies_above_the_ceiling_is_not_looked_up(model, calibrated, monkeypatch):
    """The picture stays, the searches go: those that the noise forbids cannot matter."""
    asked = []
    propose = Retriever.propose

    def noting(self, pictures):
        asked.extend(position for one in pictures for position in one.positions)
        return propose(self, pictures)

    monkeypatch.setattr(Retriever, "propose", noting)
    low = replace(CALIBRATION, ceiling=0.3, floor=0.05)
    mine = retrieval(model, replace(calibrated, calibration=low))
    drawing = draw_pictures(model, Recipe(PROMPT, BLANK, Sampling(1.0), layers_of(mine)), [11])
    uniform = np.array([Noise(11, i, 64).uniform for i in range(36)])
    wanted = np.flatnonzero(mine.active & (uniform < 0.3))
    assert asked == wanted.tolist()
    [trace] = drawing.traces
    assert np.array_equal(trace.from_retrieval, uniform < trace.weight)
    assert trace.from_retrieval.any()
    assert ((trace.weight == 0) | (trace.weight >= 0.05)).all()


def made_observations(trust, count=4000, seed=0, unknown=False):
    """Retrieval is right where the nearest is near, if `trust`; else never."""
    rng = np.random.default_rng(seed)
    near = rng.random(count) < 0.5
    facts = np.stack(
        (
            np.ones(count),
            np.where(near, -3.0, 1.0) + rng.normal(0, 0.3, count),
            rng.random(count),
            rng.random(count),
            rng.random(count),
            np.full(count, float(unknown)),
        ),
        axis=1,
    )
    p_retrieval = np.where(near & trust, 0.8, 1e-4)
    return Observations(np.full(count, 0.2), p_retrieval, facts)


def test_fitting_finds_where_retrieval_is_right():
    seen = made_observations(True)
    found = fit(seen, RetrievalOptions())
    assert found.bits_auto < found.bits_fixed - 0.3 < found.bits_model
    shares = found.calibration.of(seen.evidence)
    assert shares[seen.p_retrieval > 0.5].mean() > 0.9
    assert shares[seen.p_retrieval < 0.5].mean() < 0.05
    assert found.bits_model == pytest.approx(-np.log2(0.2))


def test_fitting_gives_no_weight_to_what_is_never_right():
    seen = made_observations(False)
    found = fit(seen, RetrievalOptions())
    assert found.calibration.of(seen.evidence).mean() < 0.02
    assert found.bits_auto < found.bits_model + 0.02


def test_the_ceiling_holds():
    seen = made_observations(True)
    found = fit(seen, RetrievalOptions(), ceiling=0.3)
    assert found.calibration.of(seen.evidence).max() <= 0.3


def test_fitted_weights_are_the_best_in_their_neighbourhood():
    """No small step in any direction makes the pictures more probable."""
    rng = np.random.default_rng(3)
    seen = made_observations(True, seed=3)
    seen = replace(seen, p_retrieval=seen.p_retrieval * rng.random(len(seen.p_model)))
    found = fit(seen, RetrievalOptions())
    for i in range(len(EVIDENCE)):
        for step in (-0.2, 0.2):
            moved = list(found.calibration.weights)
            moved[i] += step
            share = replace(found.calibration, weights=tuple(moved)).of(seen.evidence)
            p = (1 - share) * seen.p_model + share * seen.p_retrieval
            assert -np.log2(p).mean() > found.bits_auto - 1e-4


def known_observations(share, seed=1):
    """What the model is nearly sure of; neighbours look as trustworthy as can be and are right in
    a share of all cases."""
    trusted = made_observations(True, seed=seed)
    right = np.random.default_rng(seed).random(len(trusted.p_model)) < share
    return replace(
        trusted, p_model=np.full(len(right), 0.95), p_retrieval=np.where(right, 0.99, 1e-4)
    )


@pytest.mark.parametrize("harm", [0.0, 0.001, 0.02])
def test_the_floor_is_as_low_as_the_harm_allows(harm):
    seen, known = made_observations(True), known_observations(0.3)
    found = fit(seen, RetrievalOptions(), known=known, harm=harm)
    assert found.spoiled <= harm
    shares = found.calibration.of(known.evidence)
    assert ((shares == 0) | (shares >= found.calibration.floor)).all()
    below = replace(found.calibration, floor=0.0).of(known.evidence)
    nearly = np.sort(below[below < found.calibration.floor])[-2]
    lower = replace(found.calibration, floor=float(nearly))
    more = lower.of(known.evidence) * np.maximum(0.95 - known.p_retrieval, 0)
    assert found.calibration.floor == FLOOR or more.mean() > harm
    assert found.heard == np.mean(found.calibration.of(seen.evidence) > 0)


def test_a_weight_too_small_to_draw_with_is_none():
    found = fit(made_observations(False), RetrievalOptions())
    assert found.calibration.floor == FLOOR
    shares = found.calibration.of(made_observations(False, seed=5).evidence)
    assert ((shares == 0) | (shares >= FLOOR)).all()
    assert (shares == 0).mean() > 0.9


@pytest.mark.parametrize("harm", [0.08, 0.15])
def test_what_the_model_knows_suffers_no_more_than_it_may(harm):
    seen, known = made_observations(True), known_observations(0.3)
    alone = fit(seen, RetrievalOptions())
    found = fit(seen, RetrievalOptions(), known=known, harm=harm)
    p = (1 - (share := alone.calibration.of(known.evidence))) * 0.95 + share * known.p_retrieval
    assert -np.log2(p).mean() > found.known_model + 0.2
    weight = found.calibration.of(known.evidence)
    lost = np.mean(weight * np.maximum(0.95 - known.p_retrieval, 0))
    assert lost == pytest.approx(found.spoiled, abs=1e-9)
    assert found.spoiled <= harm
    assert alone.bits_auto < found.bits_auto < found.bits_model - 0.01


def test_what_retrieval_knows_as_well_costs_nothing():
    seen = made_observations(True)
    found = fit(seen, RetrievalOptions(), known=known_observations(1.0))
    assert found.known_auto < found.known_model
    assert found.bits_auto < fit(seen, RetrievalOptions()).bits_auto + 0.02


def test_too_few_positions_are_refused():
    seen = made_observations(True, count=50)
    with pytest.raises(InputError, match=r"50 positions .* too few"):
        fit(seen, RetrievalOptions())


def test_observations_are_those_of_the_pictures(model, index):
    encoder = PromptEncoder(tiny_tokenizer())
    retriever = retrieval(model, index, RetrievalOptions())
    grids = tiny_index(model, 3, seed=7).tokens
    seen = observe(model, encoder, retriever, zip(grids, ["a car", "", "two"], strict=True), AUTO)
    active = int(retriever.active.sum())
    assert len(seen.p_model) == len(seen.p_retrieval) == len(seen.evidence) == 3 * active
    blank = encoder.blank()
    assert set(blank.ids[1:-1]) == {PAD_ID}
    p = model_probabilities(model, blank.ids, blank.unconditional, grids[1])
    at = np.flatnonzero(retriever.active)
    true = p[torch.from_numpy(at), torch.from_numpy(grids[1].astype(np.int64))[at]]
    assert np.allclose(seen.p_model[active : 2 * active], true.numpy(), atol=1e-6)
    found = retrieve_truth(retriever, grids[1], AUTO)
    assert np.allclose(seen.p_retrieval[active : 2 * active], found.p_true)


def test_own_pictures_are_what_the_model_draws_alone(model):
    encoder, sampling = PromptEncoder(tiny_tokenizer()), Sampling(2.0, 0.7)
    pictures = list(own_pictures(model, encoder, sampling, 4))
    assert [text for _, text in pictures] == everyday_captions(encoder, 4, 0)
    for seed, (tokens, text) in enumerate(pictures):
        prompt = encoder.encode(text)
        alone = draw_pictures(model, Recipe(prompt.ids, prompt.unconditional, sampling), [seed])
        assert np.array_equal(tokens, alone.tokens.flatten().numpy())


def test_merging_drops_the_calibration(calibrated, model, tmp_path):
    for name, one in (("a", calibrated), ("b", tiny_index(model, 3, seed=8))):
        save_index(one, tmp_path / f"{name}.safetensors")
    parts = [load_index(tmp_path / f"{name}.safetensors") for name in "ab"]
    assert merge_indexes(parts, ["a", "b"]).calibration is None


def test_a_given_beginning_stands(model):
    def drawn(given=None, window=1):
        kept = None if given is None else Kept.first(given, model.grid.size)
        recipe = Recipe(PROMPT, BLANK, Sampling(2.0), kept=kept)
        return draw_pictures(model, recipe, [4], window).tokens.flatten().numpy()

    first = drawn()
    assert np.array_equal(drawn(first[:13]), first)
    other = (first[:13] + 1) % 64
    changed = drawn(other)
    assert np.array_equal(changed[:13], other)
    assert np.array_equal(drawn(other, window=6), changed)
