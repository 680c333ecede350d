"""Masked passes of fixed shape: the picture of the passes that a CPU runs, token for token."""

from dataclasses import replace

import pytest
import torch

from arrag_engine.decode import Kept, KeptPasses, Recipe, draw_pictures
from arrag_engine.decode.masked_passes import FixedMasked, masked_shape
from arrag_engine.errors import InputError
from arrag_engine.retrieval import layers_of, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling, Schedule
from tests.decode.test_graphs import StandIn, move
from tests.tiny_showo import sign_index, tiny_showo, tiny_showo_config

CPU = torch.device("cpu")
IDS, BLANK = [17, 1, 2, 3, 4, 1], [12, 12, 12, 17, 1, 1]
SAMPLINGS = {
    "plain": Sampling(cfg=3.0),
    "one stream": Sampling(cfg=1.0, temperature=0.8),
    "top-k and top-p": Sampling(cfg=2.0, top_k=20, top_p=0.9),
    "greedy": Sampling(cfg=3.0, temperature=0),
}


@pytest.fixture(params=[4, 2], ids=["heads", "grouped heads"])
def showo(request):
    return tiny_showo(config=tiny_showo_config(kv_heads=request.param))


def recipe_of(model, sampling=SAMPLINGS["plain"], weight=None, kept=None):
    retriever = None
    if weight is not None:
        index, options = sign_index(config=model.config), RetrievalOptions(weight, 2.0, 9)
        retriever = make_retriever(index, model.grid, model.vq.codebook(CPU), options)
    layers = layers_of(retriever)
    return Recipe(IDS, BLANK, sampling, layers, kept=kept, schedule=Schedule(4))


def assert_same(model, recipe, kept):
    exact = draw_pictures(model, recipe, [7, 8])
    fixed = draw_pictures(model, recipe, [7, 8], kept=kept)
    assert torch.equal(exact.tokens, fixed.tokens)
    for one, other in zip(exact.traces, fixed.traces, strict=True):
        assert one.p_model == pytest.approx(other.p_model, abs=2e-5)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("weight", [None, 0.5])
def test_the_picture_is_that_of_exact_passes(showo, sampling, weight):
    assert_same(showo, recipe_of(showo, sampling, weight), KeptPasses())


def test_one_recorded_pass_serves_prompts_and_numbers_of_other_drawings(showo):
    """A graph that holds the first drawing's numbers or text would draw the second one wrongly."""
    recorder = StandIn()
    kept = KeptPasses(recorder)
    for length in (6, 3, 5):
        for cfg in (2.0, 5.0):
            recipe = replace(recipe_of(showo, Sampling(cfg, 0.9)), prompt=[17, *IDS[-length + 1 :]])
            assert_same(showo, recipe, kept)
    assert (len(kept), recorder.records) == (1, 1)
    assert recorder.replays == 6 * 4


def test_a_picture_of_a_batch_is_the_picture_drawn_alone(showo):
    tokens = torch.arange(36)[None].numpy()
    recipe = recipe_of(showo, weight=0.5, kept=Kept(tokens, tokens % 3 == 0))
    together = draw_pictures(showo, recipe, [1, 2, 3], kept=KeptPasses()).tokens
    alone = [draw_pictures(showo, recipe, [s], kept=KeptPasses()).tokens for s in (1, 2, 3)]
    assert torch.equal(together, torch.cat(alone))


def test_weights_that_move_or_a_failed_recording_change_nothing(showo):
    recorder, recipe = StandIn(), recipe_of(showo)
    kept = KeptPasses(recorder)

    def meddle(done, tokens):
        if recorder.replays == 2:
            move(showo)

    wanted = draw_pictures(showo, recipe, [7]).tokens
    found = draw_pictures(showo, recipe, [7], progress=meddle, kept=kept).tokens
    assert torch.equal(found, wanted)
    assert recorder.replays == 2
    drawing = draw_pictures(showo, recipe, [7], kept=KeptPasses(StandIn(fails=True)))
    assert torch.equal(drawing.tokens, wanted)
    [note] = drawing.notes
    assert "could not be recorded as a CUDA graph" in note


def test_a_pass_runs_again_from_the_same_buffers(showo):
    recipe = recipe_of(showo)
    tokens = torch.arange(36)[None].numpy()
    with torch.inference_mode():
        one = FixedMasked(showo, recipe, masked_shape(showo, recipe, 1, CPU))
        one.begin(recipe)
        first = one.run(tokens, tokens < 9)
        address, numbers = first.data_ptr(), first.clone()
        again = one.run(tokens, tokens < 9)
    assert again.data_ptr() == address
    assert torch.equal(again, numbers)


def test_logits_that_are_not_numbers_are_refused(showo):
    showo.head.bias.data[3] = float("nan")
    with pytest.raises(InputError, match=r"not numbers in torch\.float32"):
        draw_pictures(showo, recipe_of(showo), [1], kept=KeptPasses())
