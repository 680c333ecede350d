"""Masked drawing with Show-o: the cached passes against the official loop without a cache."""

import math

import numpy as np
import pytest
import torch

from arrag_engine import session
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.decode import Kept, Recipe, draw_pictures
from arrag_engine.decode.step_noise import step_noise
from arrag_engine.errors import InputError
from arrag_engine.grid import NEIGHBORHOODS
from arrag_engine.retrieval import Asked, make_retriever
from arrag_engine.settings import (
    RetrievalOptions,
    Sampling,
    SamplingChoice,
    Schedule,
    ScheduleChoice,
)
from tests.models.slow_showo import slow_logits, slow_share
from tests.tiny import tiny_index, tiny_model
from tests.tiny_showo import showo_folder, sign_index, tiny_showo

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


def official_schedule(schedule):
    """A schedule as the settings of the official program say it."""
    bend = dict(zip(("start", "end", "tau"), schedule.sigmoid, strict=True))
    name = f"pow{schedule.power}" if schedule.curve == "pow" else schedule.curve
    return {"mask_schedule": name, "mask_schedule_params": bend}


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
        share = slow_share(official_schedule(schedule), (step + 1) / schedule.steps)
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

    def counting(self, opened, tokens, known, hook):
        rows.append((len(opened), len(tokens)))
        return real(self, opened, tokens, known, hook)

    monkeypatch.setattr(type(showo), "masked_logits", counting)
    for cfg in (1.0, 2.0):
        draw_pictures(showo, Recipe(IDS, BLANK, Sampling(cfg=cfg), schedule=Schedule(2)), [7, 8])
    assert rows == [(1, 2)] * 2 + [(2, 4)] * 2


def test_text_is_computed_once(showo, monkeypatch):
    opened, real = [], type(showo).open
    monkeypatch.setattr(
        type(showo),
        "open",
        lambda self, ids, hook: opened.append(len(ids)) or real(self, ids, hook),
    )
    draw_pictures(showo, Recipe(IDS, BLANK, Sampling(cfg=2.0), schedule=Schedule(4)), [7])
    assert sum(opened) == 2


@pytest.mark.parametrize("heat", [1.0, 100.0])
def test_kept_tokens_stay_whatever_the_noise(showo, heat):
    rng = np.random.default_rng(0)
    tokens, mask = rng.integers(0, 64, (2, 36)), rng.random((2, 36)) < 0.6
    mask[1] = True  # of this picture nothing is drawn
    kept, schedule = Kept(tokens, mask), Schedule(6, heat)
    recipe = Recipe(IDS, BLANK, Sampling(cfg=2.0), kept=kept, schedule=schedule)
    drawn = draw_pictures(showo, recipe, [7, 8]).tokens.flatten(1).numpy()
    assert (drawn[mask] == tokens[mask]).all()
    assert (drawn[0] != tokens[0])[~mask[0]].any()
    alone = Recipe(IDS, BLANK, Sampling(cfg=2.0), kept=kept.of(0), schedule=schedule)
    assert np.array_equal(draw_pictures(showo, alone, [7]).tokens.flatten().numpy(), drawn[0])


def test_it_draws_through_the_session_and_says_what_it_uses(tmp_path, showo):
    checkpoint = load_checkpoint(showo_folder(tmp_path / "show-o", showo), torch.float32)
    planned = session.plan(checkpoint, "a red car", schedule=ScheduleChoice(4, 0.5, "linear"))
    assert planned.recipe.schedule == Schedule(4, 0.5, "linear")
    assert planned.recipe.sampling.cfg == 2.75
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
    assert cut.recipe.schedule.steps == 18


def slow_found(index, tokens, known, position, k, ignore):
    """[(squared distance, patch)] of the nearest patches, by looking at every sign of all."""
    rows, grid = index.codebook, index.grid

    def around(codes, there, place):
        row, column = divmod(place, grid.width)
        for r, c in NEIGHBORHOODS["ring-8"]:
            inside = 0 <= row + r < grid.height and 0 <= column + c < grid.width
            at = (row + r) * grid.width + column + c
            yield rows[codes[at]] if inside and there[at] else None

    query, found = list(around(tokens, known, position)), []
    for number in range(index.size):
        picture, place = divmod(number, grid.size)
        key = around(index.tokens[picture], np.ones(grid.size, bool), place)
        distance = 0.0
        for one, other in zip(query, key, strict=True):
            if one is not None or not ignore:
                zero = np.zeros(rows.shape[1])
                pair = (zero if half is None else half for half in (one, other))
                distance += float((np.subtract(*pair) ** 2).sum())
        found.append((distance, number))
    return sorted(found)[:k]


@pytest.mark.parametrize("unknown", ["zero", "ignore"])
def test_what_is_retrieved_is_what_slow_search_finds(showo, unknown):
    index = sign_index(4)
    options = RetrievalOptions(0.5, 4.0, 12)
    retriever = make_retriever(index, showo.grid, index.codebook, options, unknown=unknown)
    rng = np.random.default_rng(0)
    tokens, known = rng.integers(0, 64, 36), rng.random(36) < 0.3
    positions = np.flatnonzero(retriever.query.informed(known) & ~known)
    proposals = retriever.propose([Asked(tokens, positions, known)])
    for position, proposal in zip(positions, proposals, strict=True):
        wanted = slow_found(index, tokens, known, position, 12, unknown == "ignore")
        hits = proposal.hits
        assert hits.distances[0].tolist() == [distance for distance, _ in wanted]
        assert index.numbers(hits)[0].tolist() == [number for _, number in wanted]


def test_only_search_by_bits_can_leave_neighbours_out(showo):
    index = sign_index(4, structure="flat")
    with pytest.raises(InputError, match="counts every neighbour; build the index with the struct"):
        make_retriever(index, showo.grid, index.codebook, unknown="ignore")


@pytest.mark.parametrize("unknown", ["zero", "ignore"])
def test_retrieval_joins_and_weight_zero_is_plain_bit_for_bit(showo, unknown):
    index = sign_index(4)

    def drawn(weight, seeds):
        options = RetrievalOptions(weight, 2.0, 12)
        retriever = make_retriever(index, showo.grid, index.codebook, options, unknown=unknown)
        recipe = Recipe(IDS, BLANK, Sampling(cfg=2.0), [retriever], schedule=Schedule(5))
        return draw_pictures(showo, recipe, seeds).tokens

    plain = Recipe(IDS, BLANK, Sampling(cfg=2.0), schedule=Schedule(5))
    assert torch.equal(drawn(0.0, [7, 8]), draw_pictures(showo, plain, [7, 8]).tokens)
    mixed = drawn(0.8, [7, 8])
    assert not torch.equal(mixed, draw_pictures(showo, plain, [7, 8]).tokens)
    assert torch.equal(mixed[1:], drawn(0.8, [8]))


def test_an_index_of_another_family_is_refused_either_way(showo):
    janus = tiny_model()
    with pytest.raises(
        InputError, match=r"another VQ \(64 codes of 8 numbers, the model has 64 of 6"
    ):
        make_retriever(tiny_index(janus), showo.grid, showo.vq.codebook(showo.device))
    with pytest.raises(
        InputError, match=r"another VQ \(64 codes of 6 numbers, the model has 64 of 8"
    ):
        make_retriever(sign_index(4), janus.grid, janus.vq.codebook(janus.device))


def test_signs_of_another_order_are_another_vq(showo):
    index = sign_index(4)
    with pytest.raises(InputError, match="another VQ"):
        index.check_fits(showo.grid, np.ascontiguousarray(index.codebook[:, ::-1]))
    index.check_fits(showo.grid, showo.vq.codebook(showo.device))
