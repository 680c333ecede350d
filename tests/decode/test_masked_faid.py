"""Masked drawing with a FAiD adapter: equal to whole sequences, window by window; nothing where
nothing is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from arrag_engine.decode import Kept, Recipe, draw_pictures
from arrag_engine.decode.step_noise import step_noise
from arrag_engine.errors import InputError
from arrag_engine.faid import AdapterConfig, Faid, assemble
from arrag_engine.faid.blender import PatchBlender
from arrag_engine.grid import NEIGHBORHOODS
from arrag_engine.models.showo.model import ShowO
from arrag_engine.retrieval import Asked, layers_of, make_retriever, nearest_codes
from arrag_engine.settings import RetrievalOptions, Sampling, Schedule
from tests.models.slow_showo import slow_share
from tests.models.slow_showo_faid import adapted_logits
from tests.tiny import tiny_adapter, tiny_model
from tests.tiny_showo import crooked_showo_config, sign_index, tiny_showo

IDS = [17, 1, 2, 3, 4, 1]
BLANK = [12, 12, 12, 17, 1, 1]
PLAIN = Sampling(cfg=3.0)
FULL = AdapterConfig((0, 1), (1, 2), rank=4, alpha=8.0, head=True, candidates=3, order="masked")


@pytest.fixture(scope="module")
def showo():
    return tiny_showo()


@pytest.fixture(scope="module")
def index():
    return sign_index()


def folded(model, adapter):
    state = adapter.state_dict()
    return assemble(model.config, adapter.config, lambda name: state[name], torch.float32)


def retriever_for(model, index, **options):
    options = RetrievalOptions(**{"weight": 0.0} | options)
    return make_retriever(index, model.grid, model.vq.codebook(model.device), options)


def recipe_of(faid=None, retriever=None, **more):
    fields = {"sampling": PLAIN, "schedule": Schedule(5)} | more
    return Recipe(IDS, fields.pop("blank", BLANK), layers=layers_of(retriever), faid=faid, **fields)


def slow_picture(model, adapter, recipe, seed, k, strength=1.0):
    """One picture by plain loops over whole sequences."""
    size, schedule = model.grid.size, recipe.schedule
    tokens, known = np.zeros(size, np.int64), np.zeros(size, bool)
    if recipe.kept is not None:
        tokens, known = recipe.kept.tokens[0].copy(), recipe.kept.mask[0].copy()
    heat = schedule.temperature
    for step in range(schedule.steps):
        codes = {}
        for place in np.flatnonzero(~known).tolist() if recipe.layers else ():
            row, column = divmod(place, model.grid.width)
            around = [(row + r, column + c) for r, c in NEIGHBORHOODS["ring-8"]]
            if any(
                0 <= r < model.grid.height and 0 <= c < model.grid.width
                and known[r * model.grid.width + c]
                for r, c in around
            ):  # fmt: skip
                layers = recipe.retrieval()
                [found] = layers.propose([Asked(tokens, np.array([place]), known)])
                codes[place] = [*nearest_codes(found, k), *[-1] * k][:k]
        cond = adapted_logits(model, adapter, IDS, tokens, known, codes, strength)
        blank = adapted_logits(model, adapter, recipe.unconditional, tokens, known, {}, strength)
        p = torch.softmax(blank + recipe.sampling.cfg * (cond - blank), dim=-1).double()
        noise, sure = step_noise(seed, step, size), []
        heat *= 1 - (step + 1) / schedule.steps
        for i in range(size):
            chosen = float(np.finfo(np.float32).max)
            if not known[i]:
                tokens[i] = min(int((p[i].cumsum(0) <= noise.draw[i]).sum()), model.vocab - 1)
                chosen = max(float(p[i, tokens[i]]), 1e-20)
            sure.append(math.log(chosen) - heat * math.log(-math.log(noise.keep[i])))
        share = slow_share({"mask_schedule": "cosine"}, (step + 1) / schedule.steps)
        count = max(1, min(int((~known).sum()) - 1, math.floor(size * share)))
        known = np.array(sure) >= sorted(sure)[count]
    return tokens.tolist()


@pytest.mark.parametrize("hops", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_picture_equals_the_slow_loop(showo, index, hops, strength):
    adapter = tiny_adapter(showo, replace(FULL, hops=hops), scale=0.2)
    faid = Faid(folded(showo, adapter), strength)
    recipe = recipe_of(faid, retriever_for(showo, index))
    found = draw_pictures(showo, recipe, [7]).tokens.flatten().tolist()
    assert found == slow_picture(showo, adapter, recipe, 7, 3, strength)
    assert found != draw_pictures(showo, recipe_of(), [7]).tokens.flatten().tolist()


def test_sizes_that_fit_nothing_by_accident_equal_the_slow_loop():
    model = tiny_showo(3, crooked_showo_config())
    index = sign_index(config=model.config)
    config = AdapterConfig((0, 2), (1, 2), rank=3, alpha=6.0, candidates=4, order="masked")
    adapter = tiny_adapter(model, config, scale=0.2)
    recipe = recipe_of(Faid(folded(model, adapter)), retriever_for(model, index))
    recipe = replace(recipe, prompt=IDS, unconditional=IDS[:3])
    found = draw_pictures(model, recipe, [5]).tokens.flatten().tolist()
    assert found == slow_picture(model, adapter, recipe, 5, 4)


@pytest.mark.parametrize("blank", [BLANK, [17, 1, 1], [17, 1, 5, 6, 7, 8, 9, 1]])
def test_the_unconditional_stream_of_any_length_receives_no_patches(showo, index, blank):
    adapter = tiny_adapter(showo, FULL, scale=0.2)
    recipe = recipe_of(Faid(folded(showo, adapter)), retriever_for(showo, index), blank=blank)
    found = draw_pictures(showo, recipe, [3]).tokens.flatten().tolist()
    assert found == slow_picture(showo, adapter, recipe, 3, 3)


def test_kept_tokens_are_known_surroundings(showo, index):
    rng = np.random.default_rng(0)
    kept = Kept(rng.integers(0, 64, (1, 36)), rng.random((1, 36)) < 0.5)
    adapter = tiny_adapter(showo, FULL, scale=0.2)
    recipe = recipe_of(Faid(folded(showo, adapter)), retriever_for(showo, index), kept=kept)
    found = draw_pictures(showo, recipe, [3]).tokens.flatten().tolist()
    assert found == slow_picture(showo, adapter, recipe, 3, 3)


def test_a_picture_of_a_batch_is_the_picture_drawn_alone(showo, index):
    faid = Faid(folded(showo, tiny_adapter(showo, FULL, scale=0.2)))
    recipe = recipe_of(faid, retriever_for(showo, index, weight=0.3))
    together = draw_pictures(showo, recipe, [7, 8, 9]).tokens
    for i, seed in enumerate((7, 8, 9)):
        assert torch.equal(together[i], draw_pictures(showo, recipe, [seed]).tokens[0])


def test_strength_zero_is_the_model_alone_bit_for_bit(showo, index):
    faid = Faid(folded(showo, tiny_adapter(showo, FULL)), strength=0)
    for weight in (0.0, 0.5):
        retriever = retriever_for(showo, index, weight=weight)
        one, two = (draw_pictures(showo, recipe_of(f, retriever), [7]) for f in (faid, None))
        assert torch.equal(one.tokens, two.tokens)


def test_without_an_index_blenders_do_nothing(showo):
    blenders = tiny_adapter(showo, replace(FULL, rank=0, head=False))
    found = draw_pictures(showo, recipe_of(Faid(folded(showo, blenders))), [7]).tokens
    assert torch.equal(found, draw_pictures(showo, recipe_of(), [7]).tokens)


def test_one_look_up_serves_a_step_for_the_adapter_and_the_mixture(showo, index, monkeypatch):
    asked, lookup = [], type(index).lookup
    monkeypatch.setattr(
        type(index), "lookup", lambda self, q, k, **kw: asked.append(k) or lookup(self, q, k, **kw)
    )
    faid = Faid(folded(showo, tiny_adapter(showo, FULL)), candidates=9)
    retriever = retriever_for(showo, index, weight=0.3, neighbours=5)
    draw_pictures(showo, recipe_of(faid, retriever), [7, 8])
    assert asked == [9] * 4  # nothing is known before the first of 5 steps


def test_the_prompts_are_computed_once(showo, index, monkeypatch):
    opened, real = [], ShowO._open_one
    monkeypatch.setattr(ShowO, "_open_one", lambda *a: opened.append(1) or real(*a))
    faid = Faid(folded(showo, tiny_adapter(showo, FULL)))
    draw_pictures(showo, recipe_of(faid, retriever_for(showo, index)), [7, 8])
    assert len(opened) == 2


def test_the_other_family_and_idle_settings_are_refused(showo):
    masked = Faid(tiny_adapter(showo, FULL))
    janus = tiny_model()
    with pytest.raises(InputError, match="draw in any order, this one draws in raster order"):
        draw_pictures(janus, recipe_of(masked), [0])
    with pytest.raises(InputError, match="draw in raster order, this one draws in any order"):
        draw_pictures(showo, recipe_of(Faid(tiny_adapter(janus))), [0])
    with pytest.raises(InputError, match=r"semantics is stepzero, .* choose step"):
        draw_pictures(showo, recipe_of(replace(masked, semantics="stepzero")), [0])


def test_one_set_of_parameters_makes_either_window():
    """The causal map is the part of the whole one that is drawn before the middle."""
    raster, whole = PatchBlender(5, (1, 2)), PatchBlender(5, (1, 2), "masked")
    whole.load_state_dict(raster.state_dict())
    (a, c, b), (around, centre, bias) = raster.fold(), whole.fold()
    assert around.shape == (5, 24 * 5)
    torch.testing.assert_close(around[:, : 12 * 5], a)
    torch.testing.assert_close(centre, c)
    torch.testing.assert_close(bias, b)
