"""Passes of fixed shape: the picture of the loop that a CPU runs, token for token."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

from arrag_engine.bounds import MAX_SEED
from arrag_engine.decode import Kept, KeptPasses, Recipe, draw_pictures, recorded
from arrag_engine.decode.fixed import FixedPass, shape_of
from arrag_engine.errors import InputError
from arrag_engine.faid import Faid
from arrag_engine.grid import Grid
from arrag_engine.index import KeySpec
from arrag_engine.retrieval import layers_of, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling
from tests.decode.test_raster_faid import full_adapter
from tests.tiny import BLANK, PROMPT, tiny_config, tiny_index, tiny_model

CPU = torch.device("cpu")
SAMPLINGS = {
    "plain": Sampling(cfg=3.0),
    "one stream": Sampling(cfg=1.0, temperature=0.8),
    "top-k": Sampling(cfg=2.0, top_k=9),
    "top-p": Sampling(cfg=2.0, top_p=0.8),
    "both": Sampling(cfg=1.0, temperature=1.2, top_k=20, top_p=0.9),
    "greedy": Sampling(cfg=3.0, temperature=0),
}
RETRIEVALS = {
    "none": None,
    "weightless": RetrievalOptions(0.0, 0.5, 9),
    "a little": RetrievalOptions(0.2, 0.5, 9),
    "much": RetrievalOptions(0.8, 0.1, 5, "sum", 0.9),
    "all": RetrievalOptions(1.0, 1.0, 30),
}


@pytest.fixture(scope="module")
def small():
    return tiny_model(3, replace(tiny_config(), grid=Grid(4, 5)))


@pytest.fixture(scope="module")
def adapter(small):
    return full_adapter(small)


def recipe_of(model, sampling=SAMPLINGS["plain"], options=None, faid=None, kept=None, spec=None):
    retriever = None
    if options is not None:
        codebook = model.vq.codebook(CPU)
        retriever = make_retriever(tiny_index(model, spec=spec), model.grid, codebook, options)
    return Recipe(PROMPT, BLANK, sampling, layers_of(retriever), faid, kept)


def both(model, recipe, seeds=(7, 8), window=1, kept=None):
    """(by exact passes, by fixed ones)."""
    return (
        draw_pictures(model, recipe, seeds, window),
        draw_pictures(model, recipe, seeds, window, kept=KeptPasses() if kept is None else kept),
    )


def assert_same(exact, fixed):
    assert torch.equal(exact.tokens, fixed.tokens)
    for one, other in zip(exact.traces, fixed.traces, strict=True):
        assert np.array_equal(one.from_retrieval, other.from_retrieval)
        np.testing.assert_allclose(one.p_model, other.p_model, atol=2e-5)


def assert_same_in_windows(model, recipe, windows):
    """Exact passes draw once: that their picture is the same in any window has tests of its own."""
    exact = draw_pictures(model, recipe, (7, 8))
    for window in windows:
        assert_same(exact, draw_pictures(model, recipe, (7, 8), window, kept=KeptPasses()))


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("options", RETRIEVALS.values(), ids=RETRIEVALS)
def test_the_picture_is_that_of_exact_passes(small, sampling, options):
    assert_same_in_windows(small, recipe_of(small, sampling, options), (1, 3, 100))


@pytest.mark.parametrize("sampling", [SAMPLINGS["plain"], SAMPLINGS["one stream"]])
@pytest.mark.parametrize("options", [None, *list(RETRIEVALS.values())[1:4]])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_an_adapter_works_in_the_same_pass(small, adapter, sampling, options, strength):
    faid = Faid(adapter, strength, candidates=3)
    assert_same_in_windows(small, recipe_of(small, sampling, options, faid), (1, 4))


@pytest.mark.parametrize("semantics", ["step", "stepzero"])
@pytest.mark.parametrize("spec", [KeySpec(), KeySpec("causal-8", "zero")], ids=str)
def test_what_blenders_remember_is_the_same(small, adapter, semantics, spec):
    faid = Faid(adapter, 1.0, 3, semantics)
    recipe = recipe_of(small, options=RETRIEVALS["a little"], faid=faid, spec=spec)
    assert_same(*both(small, recipe, window=6))


@pytest.mark.parametrize("length", [1, 4, 70])
@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_negative_prompt_has_starts_of_its_own(small, adapter, length, window, strength):
    """One of 70 ids needs a larger cache than the prompt of 5."""
    faid = Faid(adapter, strength, candidates=3) if strength else None
    recipe = recipe_of(small, options=RETRIEVALS["a little"], faid=faid)
    ids = [*np.arange(length - 1) % 36, PROMPT[-1]]
    recipe = replace(recipe, unconditional=[int(i) for i in ids])
    assert_same(*both(small, recipe, window=window))


def test_one_pass_serves_negative_prompts_of_several_lengths(small):
    kept = KeptPasses()
    for length in (2, 5, 30, 3):
        recipe = replace(recipe_of(small), unconditional=[*[7] * (length - 1), PROMPT[-1]])
        assert_same(*both(small, recipe, window=3, kept=kept))
    assert len(kept) == 1


def test_a_negative_prompt_that_does_not_run_takes_no_room(small):
    long = replace(recipe_of(small, SAMPLINGS["one stream"]), unconditional=[7] * 90)
    assert shape_of(small, long, 1, 1, CPU) == shape_of(
        small, recipe_of(small, SAMPLINGS["one stream"]), 1, 1, CPU
    )


@pytest.mark.parametrize("count", [1, 7, 19, 20])
@pytest.mark.parametrize("window", [1, 4])
def test_given_tokens_pass_a_window_at_a_time(small, count, window):
    given = np.arange(count, dtype=np.int64)
    recipe = recipe_of(small, options=RETRIEVALS["much"], kept=Kept.first(given, 20))
    exact, fixed = both(small, recipe, window=window)
    assert_same(exact, fixed)
    assert fixed.tokens.flatten(1)[:, :count].tolist() == [given.tolist()] * 2
    assert fixed.passes >= (count < 20) * -(-(count - 1) // window)


@pytest.mark.parametrize("window", [1, 4])
def test_a_picture_of_a_batch_is_the_picture_drawn_alone(small, window):
    recipe = recipe_of(small, options=RETRIEVALS["much"])
    together = draw_pictures(small, recipe, [1, MAX_SEED, 3], window, kept=KeptPasses())
    for i, seed in enumerate((1, MAX_SEED, 3)):
        alone = draw_pictures(small, recipe, [seed], window, kept=KeptPasses())
        assert torch.equal(together.tokens[i], alone.tokens[0])


def test_two_drawings_use_one_pass_with_their_own_numbers(small, adapter):
    """A graph that holds the first drawing's numbers would draw the second one wrongly."""
    kept = KeptPasses()
    for sampling in (Sampling(2.0, 0.9, 30, 0.9), Sampling(5.0, 1.3, 7, 0.5)):
        for strength in (0.3, 0.9):
            recipe = recipe_of(small, sampling, faid=Faid(adapter, strength, candidates=3))
            assert_same(*both(small, recipe, window=3, kept=kept))
            assert len(kept) == 1


def test_at_most_two_passes_are_kept(small):
    kept = KeptPasses()
    for window in (1, 2, 3):
        both(small, recipe_of(small), window=window, kept=kept)
    assert len(kept) == 2
    kept.clear()
    assert len(kept) == 0


def test_a_pass_serves_its_own_model_and_adapter_alone(small, adapter):
    kept, other = KeptPasses(), tiny_model(4, small.config)
    assert_same(*both(small, recipe_of(small), kept=kept))
    assert_same(*both(other, recipe_of(other), kept=kept))
    assert len(kept) == 2
    kept = KeptPasses()
    for one in (adapter, full_adapter(small, seed=6)):
        assert_same(*both(small, recipe_of(small, faid=Faid(one)), kept=kept))
    assert len(kept) == 2


def test_an_interrupted_drawing_leaves_nothing_behind(small, adapter):
    kept, recipe = KeptPasses(), recipe_of(small, options=RETRIEVALS["much"], faid=Faid(adapter))

    def stop(decided, tokens):
        if decided > 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_pictures(small, recipe, [3, 4], 4, progress=stop, kept=kept)
    assert_same(*both(small, recipe, window=4, kept=kept))


def test_a_pass_depends_on_no_number_of_the_host(small, adapter):
    """Run again with the same buffers it writes the same; every shape stays."""
    recipe = recipe_of(small, options=RETRIEVALS["a little"], faid=Faid(adapter, 0.5, 3))
    with torch.inference_mode():
        one = FixedPass(small, recipe, shape_of(small, recipe, 2, 4, CPU))
        one.begin(recipe, [7, 8])
        one.sent.host["first"][:] = [1, 3]
        one.sent.host["given"][...] = -1
        first = one.run()
        addresses = [buffer.data_ptr() for buffer in (one.cache.keys, one.drawn)]
        again = one.run()
    assert np.array_equal(first[0], again[0])
    assert addresses == [buffer.data_ptr() for buffer in (one.cache.keys, one.drawn)]


def test_a_16_bit_pass_has_one_width(small):
    half = tiny_model(3, small.config).to(torch.bfloat16)
    shapes = {shape_of(half, recipe_of(small), 1, window, CPU).width for window in (1, 4, 16, 99)}
    assert shapes == {16}
    widths = [shape_of(small, recipe_of(small), 1, window, CPU).width for window in (1, 4, 99)]
    assert widths == [1, 4, 19]


def test_in_16_bit_the_window_does_not_change_the_picture():
    """Every pass has the same shape: the bits of a position do not depend on what was accepted."""
    model = tiny_model(3, replace(tiny_config(), grid=Grid(5, 8)))
    for parameter in model.llama.parameters():
        parameter.data = parameter.data.bfloat16()
    for part in (model.gen_embed, model.gen_aligner, model.gen_head):
        part.to(torch.bfloat16)
    drawn = [
        draw_pictures(model, recipe_of(model), [5], window, kept=KeptPasses()).tokens
        for window in (1, 3, 16)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_logits_that_are_not_numbers_are_refused(small):
    broken = tiny_model(3, small.config)
    broken.gen_head.vision_head.bias.data[3] = float("nan")
    with pytest.raises(InputError, match=r"not numbers in torch\.float32"):
        draw_pictures(broken, recipe_of(broken), [1], kept=KeptPasses())


def test_capacities_are_rounded_so_that_prompts_share_a_pass(small):
    shapes = {
        shape_of(small, replace(recipe_of(small), prompt=[1] * n, unconditional=[1] * n), 1, 1, CPU)
        for n in (2, 9, 45)
    }
    assert [shape.capacity for shape in shapes] == [64]


def test_memory_does_not_grow_over_200_pictures():
    model = tiny_model(3, replace(tiny_config(), grid=Grid(2, 3)))
    recipe, kept = recipe_of(model, options=RETRIEVALS["much"]), KeptPasses()

    def held():
        gc.collect()
        tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
        return len(tensors), sum(one.numel() for one in tensors)

    for seed in range(200):
        draw_pictures(model, recipe, [seed], 3, kept=kept)
        if seed == 2:
            before = held()
    assert held() == before


def test_a_pass_serves_one_drawing_at_a_time(small):
    """A callback that draws with the same model changes nothing of the drawing around it."""
    kept, recipe = KeptPasses(), recipe_of(small)
    wanted = draw_pictures(small, recipe, [7]).tokens

    def nested(decided, tokens):
        if decided == 9:
            draw_pictures(small, recipe, [8], kept=kept)

    found = draw_pictures(small, recipe, [7], progress=nested, kept=kept).tokens
    assert torch.equal(found, wanted)
    assert len(kept) == 2


def test_a_model_in_another_precision_has_passes_of_its_own(small):
    model, kept = tiny_model(3, small.config), KeptPasses()
    draw_pictures(model, recipe_of(model), [7], 16, kept=kept)
    for part in (model.llama, model.gen_embed, model.gen_aligner, model.gen_head):
        part.to(torch.bfloat16)
    drawn = draw_pictures(model, recipe_of(model), [7], 16, kept=kept)
    assert len(kept) == 2
    assert drawn.tokens.shape == (1, 4, 5)


def test_a_wide_window_has_its_noise():
    model = tiny_model(3, replace(tiny_config(), grid=Grid(9, 10)))
    assert_same(*both(model, recipe_of(model), [7], window=80))


def test_kept_passes_make_room_for_other_work(small, monkeypatch):
    kept = KeptPasses()
    both(small, recipe_of(small), kept=kept)
    kept.make_room(CPU, 10**15)  # a CPU's memory is not counted
    assert len(kept) == 1
    monkeypatch.setattr(recorded, "free_bytes", lambda device: 1000)
    kept.make_room(CPU, 1000)
    assert len(kept) == 1
    kept.make_room(CPU, 1001)
    assert len(kept) == 0
