"""Masked drawing with Show-o: the cached passes against the official loop without a cache."""

import math

import numpy as np
import pytest
import torch

from arrag_engine import session
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.decode.step_noise import step_noise
from arrag_engine.settings import Sampling, SamplingChoice, Schedule
from tests.models.slow_showo import slow_logits
from tests.tiny_showo import showo_folder, tiny_showo

IDS = [17, 1, 2, 3, 4, 1]
BLANK = [12, 12, 12, 17, 1, 1]
SCHEDULES = {
    "cosine": Schedule(5),
    "linear": Schedule(4, 0.5, "linear"),
    "pow2": Schedule(3, 2.5, "pow"),
    "pow0.5": Schedule(4, 1.0, "pow", 0.5),
    "sigmoid": Schedule(4, 0.0, "sigmoid", sigmoid=(-3.0, 2.0, 0.7)),
}


@pytest.fixture(scope="module")
def showo():
    return tiny_showo()


def slow_share(schedule, t):
    """The official schedules, in float32."""
    t = torch.tensor(t)
    if schedule.curve == "cosine":
        return torch.cos(t * math.pi * 0.5)
    if schedule.curve == "sigmoid":
        start, end, tau = schedule.sigmoid
        first, last = (torch.sigmoid(torch.tensor(x / tau)) for x in (start, end))
        share = (last - torch.sigmoid((t * (end - start) + start) / tau)) / (last - first)
    else:
        share = 1 - t ** (1.0 if schedule.curve == "linear" else schedule.power)
    return share.clamp(1e-6, 1.0)


def slow_picture(model, recipe, seed):
    """One picture by plain loops over whole sequences."""
    size, schedule = model.grid.size, recipe.schedule
    tokens, known, heat = torch.zeros(size, dtype=torch.long), [False] * size, schedule.temperature
    for step in range(schedule.steps):
        noise = step_noise(seed, step, size)
        cond, uncond = (slow_logits(model, ids, tokens, known) for ids in (IDS, BLANK))
        w = recipe.sampling.cfg - 1
        p = torch.softmax((1 + w) * cond - w * uncond, dim=-1).double()
        sure = []
        heat *= 1 - (step + 1) / schedule.steps
        for i in range(size):
            chosen = torch.finfo(torch.float32).max
            if not known[i]:
                tokens[i] = min(int((p[i].cumsum(0) <= noise.draw[i]).sum()), model.vocab - 1)
                chosen = max(float(p[i, tokens[i]]), 1e-20)
            sure.append(math.log(chosen) - heat * math.log(-math.log(noise.keep[i])))
        share = slow_share(schedule, (step + 1) / schedule.steps)
        count = max(1, min(known.count(False) - 1, math.floor(size * share)))
        cut = sorted(sure)[count]
        known = [s >= cut for s in sure]
    return tokens.tolist()


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_picture_equals_the_slow_loop(showo, schedule):
    recipe = Recipe(IDS, BLANK, Sampling(cfg=3.0), schedule=schedule)
    drawing = draw_pictures(showo, recipe, [7])
    assert drawing.tokens.flatten().tolist() == slow_picture(showo, recipe, 7)
    assert drawing.passes == schedule.steps


def test_a_picture_of_a_batch_is_the_picture_drawn_alone(showo):
    recipe = Recipe(IDS, BLANK, Sampling(cfg=3.0), schedule=Schedule(5))
    together = draw_pictures(showo, recipe, [7, 8, 9]).tokens
    assert len({tuple(tokens.flatten().tolist()) for tokens in together}) == 3
    for i, seed in enumerate((7, 8, 9)):
        assert torch.equal(together[i], draw_pictures(showo, recipe, [seed]).tokens[0])


def test_without_guidance_the_second_stream_is_not_run(showo, monkeypatch):
    rows, real = [], type(showo).masked_logits

    def counting(self, opened, tokens, known):
        rows.append((len(opened), len(tokens)))
        return real(self, opened, tokens, known)

    monkeypatch.setattr(type(showo), "masked_logits", counting)
    for cfg in (1.0, 2.0):
        draw_pictures(showo, Recipe(IDS, BLANK, Sampling(cfg=cfg), schedule=Schedule(2)), [7, 8])
    assert rows == [(1, 2)] * 2 + [(2, 4)] * 2


def test_text_is_computed_once(showo, monkeypatch):
    opened, real = [], type(showo).open
    monkeypatch.setattr(
        type(showo), "open", lambda self, ids: opened.append(len(ids)) or real(self, ids)
    )
    draw_pictures(showo, Recipe(IDS, BLANK, Sampling(cfg=2.0), schedule=Schedule(4)), [7])
    assert sum(opened) == 2


@pytest.mark.parametrize("heat", [1.0, 100.0])
def test_given_tokens_stay_whatever_the_noise(showo, heat):
    given = np.arange(20)
    recipe = Recipe(IDS, BLANK, Sampling(cfg=2.0), given=given, schedule=Schedule(6, heat))
    tokens = draw_pictures(showo, recipe, [7, 8]).tokens.flatten(1)
    assert (tokens[:, :20] == torch.arange(20)).all()


def test_it_draws_through_the_session_and_says_what_it_uses(tmp_path, showo):
    checkpoint = load_checkpoint(showo_folder(tmp_path / "show-o", showo), torch.float32)
    planned = session.plan(checkpoint, "a red car", schedule=Schedule(4, 0.5, "linear"))
    assert planned.recipe.schedule == Schedule(4, 0.5, "linear")
    assert planned.recipe.sampling.cfg == 6
    assert any("4 steps" in note and "linear" in note for note in planned.notes)
    seen = []
    drawing = session.draw(
        checkpoint, planned, [7, 8], progress=lambda n, tokens: seen.append((n, tokens.copy()))
    )
    assert [n for n, _ in seen] == sorted(n for n, _ in seen)
    assert (len(seen), seen[-1][0]) == (4, 36)
    assert np.array_equal(seen[-1][1], drawing.tokens.flatten(1).numpy())
    cut = session.plan(checkpoint, "a red car on blue grass two apples red", SamplingChoice(cfg=2))
    assert any("cut off after" in note for note in cut.notes)
    assert cut.recipe.schedule.steps == 50
