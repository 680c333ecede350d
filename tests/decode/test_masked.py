"""Drawing in any order: a second backbone through the same session, and the oracle's schedule."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy import stats

from arrag_engine import session
from arrag_engine.decode import Kept, Recipe, draw_pictures
from arrag_engine.decode.masked import confidence, masked_count, stays, temperature_of
from arrag_engine.decode.noise import Noise
from arrag_engine.decode.step_noise import StepNoise, draw_by_sum, step_noise
from arrag_engine.errors import InputError
from arrag_engine.faid import Faid
from arrag_engine.grid import NEIGHBORHOODS
from arrag_engine.index import KeySpec
from arrag_engine.layers import Layer
from arrag_engine.retrieval import layers_of, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling, SamplingChoice, Schedule
from tests.models.toy import AROUND, CODES, GRID, ToyLoaded, ToyMasked, toy_index
from tests.tiny import BLANK, PROMPT, tiny_adapter, tiny_index, tiny_model

ORACLE = Path(__file__).parents[3] / "shared" / "oracle-showo"
IDS, OTHER = [1, 3, 3], [29, 29, 29]
STEPS = 6
KEPT = {
    "nothing": None,
    "the first": Kept.first(np.arange(9), GRID.size),
    "the middle": Kept(
        np.arange(GRID.size)[None] % CODES, (np.arange(GRID.size)[None] // 3) % 3 == 1
    ),
}


@pytest.fixture(scope="module")
def toy():
    return ToyMasked()


@pytest.fixture(scope="module")
def index():
    return toy_index()


def retriever_for(toy, index, **options):
    """All patches take part: distances of whole numbers are tied, and ties are cut anywhere."""
    options = RetrievalOptions(**{"weight": 0.6, "neighbours": 999, "temperature": 0.5} | options)
    return make_retriever(index, GRID, toy.vq.codebook(toy.device), options)


def recipe_of(retriever=None, sampling=None, kept=None, **schedule):
    schedule = Schedule(**{"steps": STEPS} | schedule)
    return Recipe(
        IDS, OTHER, sampling or Sampling(cfg=2.0), layers_of(retriever), None, kept, schedule
    )


def slow_picture(toy, recipe, seed):
    """One picture by plain loops; (tokens, the step after which each token stood)."""
    n, steps = GRID.size, recipe.schedule.steps
    tokens, stood = [0] * n, [None] * n
    for i in [] if recipe.kept is None else np.flatnonzero(recipe.kept.mask[0]):
        tokens[i], stood[i] = int(recipe.kept.tokens[0, i]), -1
    heat = recipe.schedule.temperature
    for step in range(steps):
        known = [s is not None for s in stood]
        row = torch.tensor([tokens]), torch.tensor([known])
        cond, uncond = (
            toy.masked_logits(toy.open(torch.tensor([ids])), *row)[0] for ids in recipe.streams
        )
        p = torch.softmax(uncond + recipe.sampling.cfg * (cond - uncond), dim=-1)
        noise = step_noise(seed, step, n)
        sure = []
        for i in range(n):
            if not known[i]:
                q = slow_mixture(
                    toy, recipe.layers[0] if recipe.layers else None, p[i], tokens, known, i
                )
                running, token = 0.0, 0
                while token < CODES - 1 and running + q[token] <= noise.draw[i]:
                    running += q[token]
                    token += 1
                tokens[i] = token
            chosen = float(np.finfo(np.float32).max) if known[i] else max(q[tokens[i]], 1e-20)
            sure.append(math.log(chosen))
        heat *= 1 - (step + 1) / steps
        sure = [s - heat * math.log(-math.log(u)) for s, u in zip(sure, noise.keep, strict=True)]
        share = float(np.cos(np.float32((step + 1) / steps) * np.float32(math.pi / 2)))
        count = max(1, min(known.count(False) - 1, math.floor(n * share)))
        for i in sorted(range(n), key=lambda i: sure[i])[count:]:
            stood[i] = step if stood[i] is None else stood[i]
    return tokens, stood


def slow_mixture(toy, retriever, p, tokens, known, i):
    """The distribution at an unknown position, by looking at every patch of the index."""
    p = p.double().tolist()
    if retriever is None:
        return p
    rows = toy.vq.rows.double().numpy()
    row, column = divmod(i, GRID.width)
    query, informed = [], False
    for r, c in NEIGHBORHOODS["ring-8"]:
        inside = 0 <= row + r < GRID.height and 0 <= column + c < GRID.width
        j = (row + r) * GRID.width + column + c
        there = inside and known[j]
        informed |= there
        query.append(rows[tokens[j]] if there else np.zeros(rows.shape[1]))
    if not informed:
        return p
    source, options = retriever.source, retriever.options
    found = []
    for picture in source.tokens.astype(int):
        for place in range(GRID.size):
            row, column = divmod(place, GRID.width)
            key = [
                rows[picture[(row + r) * GRID.width + column + c]]
                if 0 <= row + r < GRID.height and 0 <= column + c < GRID.width
                else np.zeros(rows.shape[1])
                for r, c in NEIGHBORHOODS["ring-8"]
            ]
            found.append((float(((np.array(key) - np.array(query)) ** 2).sum()), picture[place]))
    nearest = {}
    for distance, code in sorted(found)[: options.neighbours]:
        nearest.setdefault(code, distance)
    shares = {code: math.exp(-d / options.temperature) for code, d in nearest.items()}
    total = sum(shares.values())
    weight = options.weight
    return [(1 - weight) * q + weight * shares.get(c, 0) / total for c, q in enumerate(p)]


@pytest.mark.parametrize("weight", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
def test_a_picture_equals_the_slow_loop(toy, index, weight, kept):
    retriever = retriever_for(toy, index, weight=weight)
    recipe = recipe_of(retriever, kept=kept)
    [tokens] = draw_pictures(toy, recipe, [7]).tokens.flatten(1).tolist()
    wanted, _ = slow_picture(toy, replace(recipe, layers=[retriever] if weight else []), 7)
    assert tokens == wanted
    if kept is not None:
        assert (np.array(tokens) == kept.tokens[0])[kept.mask[0]].all()


def test_each_picture_of_a_batch_keeps_its_own_tokens(toy):
    """One of them is whole already: nothing of it is drawn again."""
    rng = np.random.default_rng(3)
    mask = rng.random((3, GRID.size)) < [[0.3], [0.8], [2.0]]
    kept = Kept(rng.integers(0, CODES, (3, GRID.size)), mask)
    together = draw_pictures(toy, recipe_of(kept=kept), [7, 8, 9]).tokens.flatten(1).numpy()
    assert (together == kept.tokens)[mask].all()
    for i, seed in enumerate((7, 8, 9)):
        alone = draw_pictures(toy, recipe_of(kept=kept.of(i)), [seed]).tokens.flatten().numpy()
        assert np.array_equal(together[i], alone)


@pytest.mark.parametrize("negative", [[5], [8, 2, 9], [4, 4, 7, 1, 6]])
def test_a_negative_prompt_of_any_length_equals_the_slow_loop(toy, index, negative):
    recipe = replace(recipe_of(retriever_for(toy, index)), unconditional=negative)
    found = draw_pictures(toy, recipe, [7, 8]).tokens.flatten(1).tolist()
    assert found == [slow_picture(toy, recipe, seed)[0] for seed in (7, 8)]
    assert found[0] != slow_picture(toy, recipe_of(retriever_for(toy, index)), 7)[0]


def test_prompts_that_leave_no_room_are_refused(toy):
    with pytest.raises(InputError, match="the negative prompt has 30 tokens and the picture 35"):
        draw_pictures(toy, replace(recipe_of(), unconditional=[3] * 30), [7])


def test_the_order_is_known_only_while_drawing(toy):
    orders = [slow_picture(toy, recipe_of(), seed)[1] for seed in (7, 8)]
    assert orders[0] != orders[1]
    assert max(orders[0].count(step) for step in range(STEPS)) > 1  # several in one step


def test_a_picture_of_a_batch_is_the_picture_drawn_alone(toy, index):
    recipe = recipe_of(retriever_for(toy, index))
    together = draw_pictures(toy, recipe, [7, 8, 9]).tokens
    for i, seed in enumerate((7, 8, 9)):
        assert torch.equal(together[i], draw_pictures(toy, recipe, [seed]).tokens[0])


def test_weight_zero_is_plain_drawing_bit_for_bit(toy, index):
    plain = draw_pictures(toy, recipe_of(), [7]).tokens
    weightless = draw_pictures(toy, recipe_of(retriever_for(toy, index, weight=0)), [7]).tokens
    assert torch.equal(plain, weightless)


def test_one_look_up_serves_a_step(toy, index, monkeypatch):
    asked = []
    lookup = type(index).lookup
    monkeypatch.setattr(
        type(index),
        "lookup",
        lambda self, q, *a, **kw: asked.append(len(q)) or lookup(self, q, *a, **kw),
    )
    before = toy.passes
    drawing = draw_pictures(toy, recipe_of(retriever_for(toy, index)), [7, 8])
    assert drawing.passes == toy.passes - before == STEPS
    assert len(asked) == STEPS - 1  # nothing is known before the first
    assert asked[0] > 2


def test_it_draws_through_the_session(toy, index):
    loaded = ToyLoaded(toy)
    planned = session.plan(loaded, "a red car", layers=[Layer(index, only="", weight=0.6)])
    assert planned.recipe.layers[0].source.spec.neighborhood == "ring-8"
    assert any("cfg 2" in note for note in planned.notes)
    seen = []
    drawing = session.draw(loaded, planned, [7, 8], progress=lambda n, t: seen.append(n))
    assert drawing.tokens.shape == (2, 5, 7)
    assert seen[-1] == GRID.size
    assert seen == sorted(seen)
    plain = session.plan(loaded, "a red car", SamplingChoice())
    assert not torch.equal(session.draw(loaded, plain, [7, 8]).tokens, drawing.tokens)


def test_a_trace_tells_what_was_asked_and_asks_nothing(toy, index, monkeypatch):
    drawing = draw_pictures(toy, recipe_of(retriever_for(toy, index)), [7])
    monkeypatch.setattr(type(index), "lookup", None)
    [trace] = drawing.traces
    _, stood = slow_picture(toy, recipe_of(retriever_for(toy, index)), 7)
    first = [i for i, step in enumerate(stood) if step == 0]
    assert (trace.weight[first] == 0).all()
    assert (trace.weight > 0).sum() > GRID.size / 2
    facts = trace.position_facts(int(np.flatnonzero(trace.weight)[0]))
    assert facts["layers"][0]["nearest"]["source"].endswith(".png")


def test_interrupting_ends_the_drawing(toy):
    def stop(decided, tokens):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_pictures(toy, recipe_of(), [7], progress=stop)


def test_everything_given_is_given_back(toy):
    given = np.arange(GRID.size)
    drawing = draw_pictures(toy, recipe_of(kept=Kept.first(given, GRID.size)), [7])
    assert drawing.passes == 0
    assert drawing.tokens.flatten().tolist() == given.tolist()


def test_greedy_drawing_uses_no_noise(toy):
    recipe = recipe_of(sampling=Sampling(cfg=2.0, temperature=0))
    assert torch.equal(*draw_pictures(toy, recipe, [7, 8]).tokens)


def test_what_a_model_in_any_order_cannot_do_is_refused(toy):
    adapter = Faid(tiny_adapter(tiny_model()))
    with pytest.raises(InputError, match="models that draw in raster order, this one draws in any"):
        draw_pictures(toy, Recipe(IDS, OTHER, Sampling(), faid=adapter), [0])
    with pytest.raises(InputError, match="no seed"):
        draw_pictures(toy, recipe_of(), [])


def test_a_ring_serves_any_order_and_not_the_raster(toy):
    retriever_for(toy, toy_index(KeySpec("causal-8", "zero", "codebook"))).check_serves(toy.order)
    janus = tiny_model()
    around = tiny_index(janus, spec=AROUND)
    codebook = janus.vq.codebook(janus.device)
    retriever = make_retriever(around, janus.grid, codebook, RetrievalOptions(weight=0.5))
    with pytest.raises(InputError, match="ring-8"):
        draw_pictures(janus, Recipe(PROMPT, BLANK, Sampling(), layers_of(retriever)), [0])


def test_tokens_are_drawn_by_their_probabilities():
    p = torch.tensor([0.5, 0.0, 0.2, 0.3]).expand(4000, -1)
    drawn = draw_by_sum(p, step_noise(1, 0, 4000).draw)
    counts = np.bincount(drawn, minlength=4)
    assert counts[1] == 0
    assert stats.chisquare(counts[[0, 2, 3]], [2000, 800, 1200]).pvalue > 0.001


def test_noise_of_steps_and_of_positions_is_drawn_apart():
    step = step_noise(7, 0, 8)
    assert len({*step.draw, *step.keep, *step_noise(7, 1, 8).draw, *step_noise(8, 0, 8).draw}) == 32
    assert Noise(7, 0, 4).uniform not in {*step.draw, *step.keep}


def test_the_schedule_is_the_cosine_and_ends_with_one():
    counts = [masked_count(Schedule(16), step, 256, 256) for step in range(16)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 1
    assert masked_count(Schedule(3), 1, 100, 100) == 49  # cos(pi/3) is just below a half in float32
    assert masked_count(Schedule(16), 0, 256, 1) == 1
    assert temperature_of(Schedule(4, 2.0), 0) == 2.0 * 0.75
    assert temperature_of(Schedule(4, 2.0), 1) == pytest.approx(2.0 * 0.75 * 0.5)
    assert temperature_of(Schedule(4, 2.0), 3) == 0


def test_confidence_is_the_logarithm_with_noise():
    noise = StepNoise(np.zeros(2), np.array([0.5, 0.9]))
    found = confidence(np.array([0.2, 0.0], np.float32), noise, 0.5)
    gumbel = [-math.log(-math.log(u)) for u in (0.5, 0.9)]
    wanted = [math.log(0.2) + gumbel[0] / 2, math.log(1e-20) + gumbel[1] / 2]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.skipif(not ORACLE.is_dir(), reason=f"there are no golden numbers in {ORACLE}")
@pytest.mark.parametrize("name", ["a", "greedy", "inpaint"])
def test_the_schedule_is_the_official_one(name):
    """Golden numbers of Show-o's program: counts, temperatures, draws and confidences."""
    settings = json.loads((ORACLE / "settings.json").read_text())["t2i"][name]
    golden = load_file(ORACLE / "t2i.safetensors")

    def of(what):
        return golden[f"{name}.{what}"]

    schedule = Schedule(settings["timesteps"], settings["temperature"])
    after = of("masked_after")[:, 0].astype(bool)
    first = np.ones_like(after[:1])
    if name == "inpaint":  # where the mask stands is told by the probabilities of the known ones
        first = of("selected_probs")[:1, 0] < 2
    before = np.concatenate((first, after[:-1]))
    for step in range(schedule.steps):
        unknown = before[step]
        count = masked_count(schedule, step, unknown.size, int(unknown.sum()))
        assert count == of("mask_len")[step, 0]
        assert temperature_of(schedule, step) == pytest.approx(of("temperature")[step], abs=1e-6)
        chosen, noise = of("selected_probs")[step, 0], None
        if not settings["greedy"]:
            noise = StepNoise(of("draw_uniform")[step, 0], of("mask_uniform")[step, 0])
        sure = confidence(chosen, noise, temperature_of(schedule, step))
        np.testing.assert_allclose(sure, of("confidence")[step, 0], atol=5e-4)
        drawn = np.where(unknown, chosen, 0.5).astype(np.float32)
        stay = stays(drawn, ~unknown, schedule, step, noise)
        assert np.array_equal(~stay, after[step])
        if not settings["greedy"] and f"{name}.logits_cfg" in golden:
            p = torch.softmax(torch.from_numpy(of("logits_cfg")[step, 0]), dim=-1)
            found = draw_by_sum(p, of("draw_uniform")[step, 0])
            assert np.array_equal(found, of("draws")[step, 0])
