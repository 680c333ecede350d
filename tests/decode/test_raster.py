"""The decoding loop: one picture, however it is drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from arrag_engine.decode import KeptPasses, Recipe, draw_pictures
from arrag_engine.decode.noise import Noise
from arrag_engine.errors import InputError
from arrag_engine.grid import NEIGHBORHOODS, Grid
from arrag_engine.index import KeySpec
from arrag_engine.retrieval import Retriever, layers_of, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling
from tests import slow
from tests.tiny import BLANK, PAD_ID, PROMPT, tiny_config, tiny_index, tiny_model

CPU = torch.device("cpu")
SAMPLINGS = {
    "plain": Sampling(cfg=3.0),
    "one stream": Sampling(cfg=1.0, temperature=0.8),
    "temperature 0": Sampling(cfg=3.0, temperature=0),
}


def retriever_for(model, index, **options):
    codebook = model.vq.quantize.rows(CPU).numpy()
    options = RetrievalOptions(**{"weight": 0.5} | options)
    return make_retriever(index, model.config.grid, codebook, options)


def drawn(model, sampling=SAMPLINGS["plain"], seeds=(7,), retriever=None, window=1, **rest):
    return draw_pictures(
        model, Recipe(PROMPT, BLANK, sampling, layers_of(retriever)), seeds, window, **rest
    )


def model_of(height, width, kv_heads=4, codes=64):
    config = tiny_config(kv_heads=kv_heads)
    vq = replace(config.vq, codebook_size=codes)
    return tiny_model(3, replace(config, vq=vq, grid=Grid(height, width)))


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_picture_equals_the_slow_reference(sampling, kv_heads):
    model = model_of(4, 5, kv_heads)
    wanted = slow.picture(model, PROMPT, PAD_ID, sampling, 7)
    assert drawn(model, sampling).tokens.flatten().tolist() == wanted


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize(
    "spec",
    [
        KeySpec(),
        KeySpec(borders="zero"),
        KeySpec("causal-8", "zero", "codebook"),
        KeySpec("causal-8"),
    ],
    ids=str,
)
@pytest.mark.parametrize("duplicates", ["first", "sum"])
def test_a_retrieving_picture_equals_the_slow_reference(sampling, spec, duplicates):
    model = model_of(4, 6)
    index = tiny_index(model, spec=spec)
    retriever = retriever_for(model, index, neighbours=9, duplicates=duplicates)
    offsets = NEIGHBORHOODS[spec.neighborhood]
    wanted = slow.picture(model, PROMPT, PAD_ID, sampling, 7, index, offsets, retriever.options)
    assert drawn(model, sampling, retriever=retriever).tokens.flatten().tolist() == wanted


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("weight", [None, 0.2, 0.7, 1.0])
def test_the_window_does_not_change_the_picture(model, index, sampling, weight):
    retriever = None if weight is None else retriever_for(model, index, weight=weight)
    one = drawn(model, sampling, (7, 8), retriever)
    for window in (2, 4, 16, 36, 1000):
        other = drawn(model, sampling, (7, 8), retriever, window)
        assert torch.equal(one.tokens, other.tokens)
        assert other.passes <= one.passes


@pytest.mark.parametrize("borders", ["skip", "zero"])
@pytest.mark.parametrize("window", [4, 36])
def test_the_window_does_not_change_what_retriever_did(model, borders, window):
    index = tiny_index(model, spec=KeySpec(borders=borders))
    retriever = retriever_for(model, index)
    one = drawn(model, retriever=retriever).traces[0]
    other = drawn(model, retriever=retriever, window=window).traces[0]
    assert np.array_equal(one.from_retrieval, other.from_retrieval)
    assert np.array_equal(one.weight, other.weight)
    [mine], [its] = one.layers, other.layers
    assert np.array_equal(index.numbers(mine.hits), index.numbers(its.hits))
    np.testing.assert_allclose(one.p_model, other.p_model, atol=1e-5)
    np.testing.assert_allclose(mine.p_retrieval, its.p_retrieval, atol=1e-6)


@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize("retrieve", [False, True])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_picture_of_a_batch_is_the_picture_drawn_alone(model, index, window, retrieve, cfg):
    retriever = retriever_for(model, index) if retrieve else None
    seeds = [100, 101, 102, 103]
    together = drawn(model, Sampling(cfg=cfg), seeds, retriever, window)
    for i, seed in enumerate(seeds):
        alone = drawn(model, Sampling(cfg=cfg), [seed], retriever, window)
        assert torch.equal(together.tokens[i], alone.tokens[0])
        if retrieve:
            mine, its = together.traces[i], alone.traces[0]
            assert np.array_equal(mine.from_retrieval, its.from_retrieval)
            np.testing.assert_allclose(mine.p_model, its.p_model, atol=1e-5)


@pytest.mark.parametrize("window", [1, 4])
def test_weight_zero_is_plain_drawing_bit_for_bit(model, index, window):
    plain = drawn(model, window=window)
    weightless = drawn(model, window=window, retriever=retriever_for(model, index, weight=0))
    assert torch.equal(plain.tokens, weightless.tokens)
    assert plain.passes == weightless.passes
    trace = weightless.traces[0]
    assert not trace.weight.any()
    assert not trace.from_retrieval.any()
    assert not trace.layers[0].hits.found().any()


def test_other_seeds_draw_other_pictures_and_the_same_seed_the_same(model):
    tokens = drawn(model, seeds=(1, 2, 1)).tokens
    assert torch.equal(tokens[0], tokens[2])
    assert not torch.equal(tokens[0], tokens[1])


@pytest.mark.parametrize(("seed", "same"), [(2**64 + 3, 3), (-1, 2**64 - 1)])
def test_seeds_wrap_at_two_to_the_64(model, seed, same):
    assert torch.equal(drawn(model, seeds=[seed]).tokens, drawn(model, seeds=[same]).tokens)


def test_the_global_generator_does_not_matter(model):
    torch.manual_seed(1)
    one = drawn(model)
    torch.manual_seed(2)
    assert torch.equal(one.tokens, drawn(model).tokens)


def test_drawing_keeps_no_state(model, index):
    retriever = retriever_for(model, index)
    first = drawn(model, retriever=retriever)
    drawn(model, Sampling(temperature=0), (3, 4), retriever, 6)
    again = drawn(model, retriever=retriever)
    assert torch.equal(first.tokens, again.tokens)
    assert np.array_equal(
        first.traces[0].layers[0].hits.positions, again.traces[0].layers[0].hits.positions
    )


def test_a_sequential_picture_takes_one_pass_a_token(model):
    assert drawn(model).passes == 36


def test_a_window_takes_fewer_passes(model):
    """A small model that listens more to its noise than to what it drew last."""
    assert drawn(model, Sampling(cfg=1, temperature=20), window=8).passes < 36 / 3


def test_a_token_drawn_from_retrieval_needs_no_pass(model, index):
    drawing = drawn(model, retriever=retriever_for(model, index, weight=0.6))
    retrieved = drawing.traces[0].from_retrieval
    assert retrieved.sum() > 8
    assert drawing.passes <= 36 - retrieved.sum() + 1  # one to make up for a run at the very end


def test_a_picture_from_retrieval_alone_needs_passes_only_at_the_borders(model, index):
    drawing = drawn(model, retriever=retriever_for(model, index, weight=1.0))
    retrieved = np.flatnonzero(drawing.traces[0].from_retrieval)
    assert np.array_equal(retrieved, index.active)
    assert drawing.passes <= 36 - len(index.active) + 1


def test_the_first_token_of_a_one_token_prompt_can_be_drawn(model):
    tokens = draw_pictures(model, Recipe([4], [4], SAMPLINGS["plain"]), [7]).tokens
    assert tokens.flatten().tolist() == slow.picture(model, [4], PAD_ID, SAMPLINGS["plain"], 7)


@pytest.mark.parametrize("window", [1, 5])
def test_progress_only_grows_and_reports_tokens_that_stay(model, window):
    seen = []
    final = drawn(
        model, seeds=(1, 2), window=window, progress=lambda n, t: seen.append((n, t.copy()))
    )
    counts = [n for n, _ in seen]
    assert counts == sorted(counts)
    assert counts[-1] == 36
    assert len(seen) == final.passes
    flat = final.tokens.view(2, -1).numpy()
    for count, tokens in seen:
        assert tokens.shape == (2, 36)
        assert np.array_equal(tokens[:, :count], flat[:, :count])
        assert np.array_equal(tokens[tokens >= 0], flat[tokens >= 0]), "none is a guess"
        assert ((tokens[:, 1:] < 0) >= (tokens[:, :-1] < 0)).all(), "nothing after a gap"


def test_what_progress_raises_ends_the_drawing(model):
    passes = []

    def stop(done, _):
        passes.append(done)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawn(model, progress=stop)
    assert passes == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"seeds": ()}, "no seed"), ({"window": 0}, "window is 0"), ({"window": 1e9}, "window is 1")],
)
def test_an_impossible_request_is_refused(model, arguments, message):
    with pytest.raises(InputError, match=message):
        drawn(model, **arguments)


def test_a_prompt_that_leaves_no_room_is_refused(model):
    with pytest.raises(InputError, match="prompt has 477 tokens and the picture 36"):
        draw_pictures(model, Recipe([1] * 477, [1] * 477, Sampling()), [0])


def test_a_negative_prompt_that_leaves_no_room_is_refused(model):
    recipe = Recipe(PROMPT, [1] * 477, Sampling())
    wanted = (
        "the negative prompt has 477 tokens and the picture 36, the model takes 512 together; "
        "shorten the negative prompt"
    )
    with pytest.raises(InputError, match=wanted):
        draw_pictures(model, recipe, [0])


@pytest.mark.parametrize("kept", [None, KeptPasses()], ids=["exact", "fixed"])
def test_a_negative_prompt_runs_alone_and_at_guidance_1_not_at_all(model, monkeypatch, kept):
    prefills, rows = [], set()
    prefill, logits = type(model).prefill, type(model).logits

    def note_prefill(self, x, *rest):
        prefills.append(tuple(x.shape[:2]))
        return prefill(self, x, *rest)

    def note_logits(self, x, *rest):
        rows.add(len(x))
        return logits(self, x, *rest)

    monkeypatch.setattr(type(model), "prefill", note_prefill)
    monkeypatch.setattr(type(model), "logits", note_logits)
    last = 1 if kept is None else 0  # the last id belongs to the first pass, or to the prompt's
    negative = [1, *range(5, 14), 4]
    draw_pictures(model, Recipe(PROMPT, negative, Sampling(2.0)), [7, 8], kept=kept)
    assert prefills == [(1, 5 - last), (1, 11 - last)]
    assert rows == {4}
    prefills.clear(), rows.clear()
    one = draw_pictures(model, Recipe(PROMPT, negative, Sampling(1.0)), [7, 8], kept=kept)
    assert prefills == [(1, 5 - last)]
    assert rows == {2}
    blank = draw_pictures(model, Recipe(PROMPT, BLANK, Sampling(1.0)), [7, 8], kept=kept)
    assert torch.equal(one.tokens, blank.tokens)


def test_a_negative_prompt_equal_to_the_prompt_leaves_guidance_nothing_to_do(model):
    """Whatever the guidance, the two streams agree."""
    alone = drawn(model, Sampling(1.0, temperature=0.5)).tokens
    for cfg in (2.0, 9.0):
        recipe = Recipe(PROMPT, PROMPT, Sampling(cfg, temperature=0.5))
        assert torch.equal(draw_pictures(model, recipe, [7]).tokens, alone)


def test_the_trace_tells_what_a_reader_can_work_out(model, index):
    sampling, retriever = SAMPLINGS["plain"], retriever_for(model, index, neighbours=10)
    drawing = drawn(model, sampling, retriever=retriever)
    trace, tokens = drawing.traces[0], drawing.tokens.flatten().tolist()
    offsets, codebook = NEIGHBORHOODS["causal-4"], model.vq.quantize.rows(CPU).numpy()
    assert np.array_equal(trace.tokens, tokens)
    for i in range(36):
        p = slow.p_model(model, PROMPT, PAD_ID, tokens[:i], sampling)[tokens[i]]
        assert trace.p_model[i] == pytest.approx(p, abs=1e-5)
        q = slow.p_retrieved(index, codebook, offsets, tokens[:i], i, retriever.options)
        assert trace.weight[i] == (0 if q is None else 0.5)
        uniform = Noise(7, i, 64).uniform
        assert trace.from_retrieval[i] == (q is not None and uniform < 0.5)
        owed = 0 if q is None else 0.5 * q[tokens[i]] / (0.5 * q[tokens[i]] + 0.5 * p)
        assert trace.responsibility[i] == pytest.approx(owed, abs=1e-4)


def test_a_position_names_the_pictures_that_proposed_its_token(model, index):
    retriever = retriever_for(model, index, weight=1.0, neighbours=10)
    trace = drawn(model, retriever=retriever).traces[0]
    assert trace.position_facts(0) == {
        "row": 0, "column": 0, "token": int(trace.tokens[0]), "weight": 0.0,
    }  # fmt: skip
    facts = trace.position_facts(8)
    [layer] = facts["layers"]
    assert (facts["row"], facts["column"], layer["neighbours"]) == (1, 2, 10)
    assert facts["responsibility"] == 1
    assert layer["proposed_by"]
    for place in layer["proposed_by"]:
        picture = int(place["source"].removesuffix(".png"))
        assert index.tokens[picture, place["row"] * 6 + place["column"]] == facts["token"]


def joint_reference(model, index, options, sampling):
    """Exact probability [V, V] of every two-token picture on a 1x2 grid."""
    vocab, codebook = model.config.vq.codebook_size, model.vq.quantize.rows(CPU).numpy()
    joint = np.zeros((vocab, vocab))
    first = slow.p_model(model, PROMPT, PAD_ID, [], sampling)
    for x in range(vocab):
        p = slow.p_model(model, PROMPT, PAD_ID, [x], sampling)
        q = slow.p_retrieved(index, codebook, NEIGHBORHOODS["causal-4"], [x], 1, options)
        joint[x] = first[x] * ((1 - options.weight) * p + options.weight * q)
    return joint


@pytest.mark.parametrize(("weight", "window"), [(0.3, 1), (0.8, 2)])
def test_drawing_the_component_first_draws_from_the_merged_distribution(weight, window):
    model = model_of(1, 2, codes=10)
    index = tiny_index(model, images=12, spec=KeySpec(borders="zero"))
    retriever = retriever_for(model, index, weight=weight, neighbours=6, temperature=1.0)
    sampling, draws = Sampling(cfg=2, temperature=4), 2500
    counts = np.zeros((10, 10))
    for start in range(0, draws, 500):
        seeds = range(start, start + 500)
        tokens = drawn(model, sampling, seeds, retriever, window).tokens.view(-1, 2)
        np.add.at(counts, tuple(tokens.T.numpy()), 1)
    wanted = joint_reference(model, index, retriever.options, sampling) * draws
    likely = wanted > 5
    assert likely.sum() > 20
    found = [*counts[likely], counts[~likely].sum()]
    expected = [*wanted[likely], wanted[~likely].sum()]
    assert stats.chisquare(found, expected).pvalue > 1e-3


def test_retriever_is_chosen_as_often_as_its_weight_says():
    model = model_of(1, 2, codes=10)
    index = tiny_index(model, spec=KeySpec(borders="zero"))
    traces = drawn(
        model, seeds=range(1000), retriever=retriever_for(model, index, weight=0.3)
    ).traces
    chosen = sum(bool(trace.from_retrieval[1]) for trace in traces)
    assert stats.binomtest(chosen, 1000, 0.3).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_draws_whole_pictures(dtype):
    model = tiny_model()
    vq = model.vq
    model.to(dtype)
    vq.float()
    tokens = drawn(model, seeds=(1, 2), window=4).tokens
    assert tokens.shape == (2, 6, 6)
    assert len(tokens.unique()) > 5


def test_a_trace_costs_nothing_until_it_is_asked_for(model, index, monkeypatch):
    """Drawing looks up what the noise makes it need; the trace looks up the rest, once."""
    retriever = retriever_for(model, index, weight=0.2)
    asked = []
    propose = Retriever.propose

    def noting(self, pictures):
        asked.extend(position for one in pictures for position in one.positions)
        return propose(self, pictures)

    monkeypatch.setattr(Retriever, "propose", noting)
    drawing = drawn(model, retriever=retriever)
    active = np.flatnonzero(retriever.active).tolist()
    needed = [i for i in active if Noise(7, i, 64).uniform < 0.2]
    assert asked == needed
    assert drawing.traces is drawing.traces
    assert sorted(asked) == active


def test_progress_is_called_for_every_token_that_retriever_draws_alone(model, index):
    seen = []
    drawn(
        model,
        retriever=retriever_for(model, index, weight=1.0),
        progress=lambda decided, _: seen.append(decided),
    )
    assert sorted(set(seen)) == list(range(1, model.config.grid.size + 1))


def test_what_drawing_needs_grows_with_batch_length_and_window(model):
    few = model.drawing_bytes(2, 40, 1)
    cache = model.new_cache(2, 40, torch.device("cpu"))
    assert few > cache.keys.nbytes + cache.values.nbytes
    assert model.drawing_bytes(4, 40, 1) > few
    assert model.drawing_bytes(2, 80, 1) > few
    assert model.drawing_bytes(2, 40, 16) > few
    assert model.picture_bytes(3) == 3 * model.picture_bytes()
