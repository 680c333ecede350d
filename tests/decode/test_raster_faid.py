"""Drawing with a FAiD adapter: the same picture however it is drawn, and nothing left behind."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.errors import InputError
from arrag_engine.faid import AdapterConfig, Faid, assemble
from arrag_engine.grid import NEIGHBORHOODS, Grid
from arrag_engine.retrieval import Retriever, layers_of, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling
from tests import slow
from tests.tiny import (
    BLANK,
    PAD_ID,
    PROMPT,
    blender_tensors,
    tiny_adapter,
    tiny_config,
    tiny_index,
    tiny_model,
)

CPU = torch.device("cpu")
FP32 = torch.float32
CAUSAL_4 = NEIGHBORHOODS["causal-4"]
PLAIN = Sampling(cfg=3.0)


def adapter_of(model, layers=(0, 1), hops=(1, 2), seed=0):
    """(adapter for drawing, what the slow reference takes)."""
    tensors = blender_tensors(model.config.llama.hidden_size, layers, hops, seed)
    tensors = {n: t * 2 if "conv" in n else t for n, t in tensors.items()}  # a strong voice
    adapter = assemble(
        model.config,
        AdapterConfig(layers, hops),
        lambda name: tensors[f"language_model.model.{name}"],
        FP32,
    )
    return adapter, (tensors, layers, hops)


def full_adapter(model, seed=5):
    """Blenders, low-rank changes and a head, all of them random."""
    whole = tiny_adapter(model, seed=seed)
    state = whole.state_dict()
    return assemble(model.config, whole.config, lambda name: state[name], FP32)


def retrieval_for(model, index, **options):
    codebook = model.vq.quantize.rows(CPU).numpy()
    options = RetrievalOptions(**{"weight": 0.0} | options)
    return make_retriever(index, model.config.grid, codebook, options)


def drawn(model, faid, retrieval=None, seeds=(7,), window=1, sampling=PLAIN):
    return draw_pictures(
        model, Recipe(PROMPT, BLANK, sampling, layers_of(retrieval), faid), seeds, window
    )


def small_model(height=4, width=5):
    return tiny_model(3, replace(tiny_config(), grid=Grid(height, width)))


@pytest.mark.parametrize(
    ("semantics", "hops", "layers"),
    [
        ("step", (1,), (0,)),
        ("step", (2,), (1,)),
        ("step", (1, 2), (0, 1)),
        ("stepzero", (1,), (0, 1)),
        ("stepzero", (1, 2), (0, 1)),
    ],
)
def test_a_picture_equals_the_slow_reference(semantics, hops, layers):
    model = small_model()
    index = tiny_index(model)
    adapter, blenders = adapter_of(model, layers, hops)
    faid = Faid(adapter, candidates=3, semantics=semantics)
    wanted = slow.faid_picture(
        model, blenders, PROMPT, PAD_ID, PLAIN, 7, index, CAUSAL_4, 3, None, semantics
    )
    found = drawn(model, faid, retrieval_for(model, index)).tokens.flatten().tolist()
    assert found == wanted


@pytest.mark.parametrize(
    ("sampling", "strength"),
    [(PLAIN, 0.5), (Sampling(cfg=1.0), 2.0), (Sampling(cfg=2, temperature=0), 1.0)],
)
def test_settings_and_strength_equal_the_slow_reference(sampling, strength):
    model = small_model()
    index = tiny_index(model)
    adapter, blenders = adapter_of(model)
    faid = Faid(adapter, strength, candidates=10)
    wanted = slow.faid_picture(
        model, blenders, PROMPT, PAD_ID, sampling, 9, index, CAUSAL_4, 10, strength=strength
    )
    found = drawn(model, faid, retrieval_for(model, index), (9,), sampling=sampling)
    assert found.tokens.flatten().tolist() == wanted


@pytest.mark.parametrize("negative", [[1, 4], [1, *range(5, 15), 4]])
def test_a_negative_prompt_equals_the_slow_reference(negative):
    """It receives no patches, whatever its length."""
    model = small_model()
    index = tiny_index(model)
    adapter, blenders = adapter_of(model)
    wanted = slow.faid_picture(
        model, blenders, PROMPT, PAD_ID, PLAIN, 7, index, CAUSAL_4, 3, negative=negative
    )
    faid, retrieval = Faid(adapter, candidates=3), retrieval_for(model, index)
    recipe = Recipe(PROMPT, negative, PLAIN, layers_of(retrieval), faid)
    for window in (1, 4):
        found = draw_pictures(model, recipe, [7], window).tokens.flatten()
        assert found.tolist() == wanted


@pytest.mark.parametrize("neighbours", [2, 3, 30])
def test_both_methods_at_once_equal_the_slow_reference(neighbours):
    """Each hears as many neighbours as it asked for, whichever wants more."""
    model = small_model()
    index = tiny_index(model)
    adapter, blenders = adapter_of(model)
    retrieval = retrieval_for(model, index, weight=0.4, neighbours=neighbours)
    wanted = slow.faid_picture(
        model, blenders, PROMPT, PAD_ID, PLAIN, 7, index, CAUSAL_4, 3, retrieval.options
    )
    found = drawn(model, Faid(adapter, candidates=3), retrieval)
    assert found.tokens.flatten().tolist() == wanted
    assert found.traces[0].from_retrieval.any()


@pytest.mark.parametrize("sampling", [PLAIN, Sampling(cfg=3.0, temperature=0)])
@pytest.mark.parametrize("weight", [None, 0.0, 0.3])
@pytest.mark.parametrize("semantics", ["step", "stepzero"])
def test_the_window_does_not_change_the_picture(model, index, weight, semantics, sampling):
    retrieval = None if weight is None else retrieval_for(model, index, weight=weight)
    faid = Faid(adapter_of(model)[0], semantics=semantics)
    one = drawn(model, faid, retrieval, (7, 8), sampling=sampling)
    for window in (5, 36):
        other = drawn(model, faid, retrieval, (7, 8), window, sampling)
        assert torch.equal(one.tokens, other.tokens)
        assert other.passes <= one.passes


@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_a_picture_of_a_batch_is_the_picture_drawn_alone(model, index, window, cfg, weight):
    retrieval = retrieval_for(model, index, weight=weight)
    faid = Faid(full_adapter(model))
    together = drawn(model, faid, retrieval, (100, 101, 102), window, Sampling(cfg=cfg))
    for i in range(3):
        alone = drawn(model, faid, retrieval, (100 + i,), window, Sampling(cfg=cfg))
        assert torch.equal(together.tokens[i], alone.tokens[0])


@pytest.mark.parametrize("window", [1, 7])
@pytest.mark.parametrize("weight", [None, 0.0, 0.4])
def test_strength_zero_is_the_base_bit_for_bit(model, index, weight, window):
    retrieval = None if weight is None else retrieval_for(model, index, weight=weight)
    base = drawn(model, None, retrieval, window=window)
    silent = drawn(model, Faid(full_adapter(model), 0.0), retrieval, window=window)
    assert torch.equal(base.tokens, silent.tokens)
    assert base.passes == silent.passes
    for mine, its in zip(base.traces, silent.traces, strict=True):
        assert np.array_equal(mine.p_model, its.p_model)
        for one, other in zip(mine.layers, its.layers, strict=True):
            assert np.array_equal(index.numbers(one.hits), index.numbers(other.hits))


def test_every_part_of_an_adapter_is_heard_and_more_strength_is_more_of_it(model, index):
    retrieval = retrieval_for(model, index)
    adapter = full_adapter(model)
    base = drawn(model, None).tokens
    whole = drawn(model, Faid(adapter), retrieval).tokens
    seen = [base, whole, drawn(model, Faid(adapter, 2.0), retrieval).tokens]
    for part in ("blender", "q_proj", "v_proj"):
        less = full_adapter(model)
        for layer in less.layers.values():
            setattr(layer, part, None)
        seen.append(drawn(model, Faid(less), retrieval).tokens)
    less = full_adapter(model)
    less.gen_head = None
    seen.append(drawn(model, Faid(less), retrieval).tokens)
    assert len({tuple(tokens.flatten().tolist()) for tokens in seen}) == len(seen)


def test_drawing_leaves_no_trace_in_model_or_adapter(model, index):
    base = drawn(model, None).tokens
    one, two = Faid(full_adapter(model, 1)), Faid(full_adapter(model, 2))
    before = [t.clone() for part in (model, one.adapter) for t in part.state_dict().values()]
    retrieval = retrieval_for(model, index)
    first = drawn(model, one, retrieval).tokens
    assert not torch.equal(first, drawn(model, two, retrieval, (3, 4), 6).tokens[0])
    assert torch.equal(first, drawn(model, one, retrieval).tokens)
    assert torch.equal(base, drawn(model, None).tokens)
    after = [t for part in (model, one.adapter) for t in part.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_unconditional_stream_hears_nothing(model, index, monkeypatch):
    """Rows of a blender's input: pictures, not pictures times streams."""
    adapter, _ = adapter_of(model)
    seen = []
    for layer in adapter.by_layer.values():
        layer.blender.register_forward_hook(lambda m, a, out: seen.append(len(out)))
    drawn(model, Faid(adapter), retrieval_for(model, index), (1, 2, 3))
    assert set(seen) == {3}


def test_blenders_hear_as_many_codes_as_they_were_trained_with(model, index):
    adapter, _ = adapter_of(model)
    adapter.config = replace(adapter.config, candidates=3)
    retrieval = retrieval_for(model, index)
    told, untold = (drawn(model, Faid(adapter, candidates=k), retrieval) for k in (3, 0))
    assert torch.equal(untold.tokens, told.tokens)
    assert untold.traces[0].layers[0].hits.codes.shape == (36, 3)


def test_the_trace_tells_what_the_blenders_heard(model, index):
    retrieval = retrieval_for(model, index)
    trace = drawn(model, Faid(adapter_of(model)[0], candidates=4), retrieval).traces[0]
    assert trace.layers[0].hits.codes.shape == (36, 4)
    assert np.array_equal(trace.layers[0].hits.found().all(1), retrieval.active)
    assert not trace.weight.any()
    assert not trace.from_retrieval.any()
    facts = trace.position_facts(8)
    assert facts["layers"][0]["neighbours"] == 4
    assert facts["responsibility"] == 0


def test_an_adapter_without_blenders_looks_nothing_up(model, index, monkeypatch):
    adapter = full_adapter(model)
    adapter.config = replace(adapter.config, blender_layers=())
    for layer in adapter.layers.values():
        layer.blender = None
    monkeypatch.setattr(Retriever, "lookup", lambda *_: pytest.fail("looked something up"))
    trace = drawn(model, Faid(adapter), retrieval_for(model, index)).traces[0]
    assert not trace.layers[0].hits.found().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_draws_whole_pictures(dtype, index):
    model = tiny_model()
    retrieval = retrieval_for(model, index)
    vq = model.vq
    model.to(dtype)
    vq.float()
    adapter = full_adapter(model).to(dtype)
    tokens = drawn(model, Faid(adapter), retrieval, (1, 2), 4).tokens
    assert len(tokens.unique()) > 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": -0.1}, "adapter strength is -0.1; choose 0 to 2"),
        ({"strength": 2.1}, "adapter strength is 2.1"),
        ({"strength": float("nan")}, "adapter strength is nan"),
        ({"candidates": -1}, "candidates is -1"),
        ({"candidates": 1001}, "candidates is 1001"),
        ({"semantics": "train"}, "semantics is 'train'; choose one of step, stepzero"),
    ],
)
def test_settings_that_make_no_sense_are_refused(model, settings, message):
    with pytest.raises(InputError, match=message):
        Faid(adapter_of(model)[0], **settings)
