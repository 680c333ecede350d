"""A picture that is continued, against one put together cell by cell."""

from dataclasses import replace

import pytest
import torch

from arrag_engine import session
from arrag_engine.decode import Kept, draw_pictures
from arrag_engine.errors import InputError
from arrag_engine.layers import Layer
from arrag_engine.outpainting import FAR, Outpainting, outpaint
from arrag_engine.settings import SIDES, SamplingChoice, ScheduleChoice
from tests.models.toy import CODES, GRID, ToyLoaded, ToyMasked, toy_index
from tests.tiny import tiny_model

STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
KEPT = {"left": 3, "right": 3, "up": 2, "down": 2}
"""Half of 7 columns and of 5 rows, rounded down."""


@pytest.fixture(scope="module")
def loaded():
    return ToyLoaded(ToyMasked())


@pytest.fixture(scope="module")
def planned(loaded):
    layer = Layer(toy_index(), only="", weight=0.5)
    return session.plan(loaded, "a red car", layers=[layer], schedule=ScheduleChoice(4))


def picture(height=GRID.height, width=GRID.width, count=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, CODES, (count, height, width), generator=generator)


def slow_outpaint(model, recipe, seed, tokens, side, times):
    """Tokens by (row, column), the first picture's corner being (0, 0), of one picture."""
    cells = {(r, c): int(tokens[r, c]) for r in range(len(tokens)) for c in range(len(tokens[0]))}
    down, across = STEPS[side]
    for turn in range(times):
        top, left = min(r for r, _ in cells), min(c for _, c in cells)
        bottom, right = max(r for r, _ in cells), max(c for _, c in cells)
        row = {1: bottom - KEPT[side] + 1, -1: top - GRID.height + KEPT[side], 0: top}[down]
        column = {1: right - KEPT[side] + 1, -1: left - GRID.width + KEPT[side], 0: left}[across]
        places = [(row + i // GRID.width, column + i % GRID.width) for i in range(GRID.size)]
        stands = torch.tensor([[place in cells for place in places]]).numpy()
        given = torch.tensor([[cells.get(place, 0) for place in places]]).numpy()
        mine = replace(recipe, kept=Kept(given, stands))
        drawn = draw_pictures(model, mine, [seed + turn * FAR]).tokens.flatten().tolist()
        cells |= dict(zip(places, drawn, strict=True))
    rows, columns = ({place[i] for place in cells} for i in (0, 1))
    return [[cells[r, c] for c in sorted(columns)] for r in sorted(rows)]


@pytest.mark.parametrize("side", SIDES)
def test_pictures_grow_as_put_together_cell_by_cell_and_keep_all_they_had(loaded, planned, side):
    down, across = STEPS[side]
    given = picture(GRID.height + 2 * abs(down), GRID.width + 2 * abs(across), count=2)
    drawn = outpaint(loaded, planned, [5, 6], Outpainting(given, side, 2)).tokens
    for i in range(2):
        wanted = slow_outpaint(loaded.model, planned.recipe, 5 + i, given[i], side, 2)
        assert drawn[i].tolist() == wanted
    height, width = given.shape[1:]
    added = [n - old for n, old in zip(drawn.shape[1:], (height, width), strict=True)]
    assert added == [2 * abs(down) * (GRID.height - 2), 2 * abs(across) * (GRID.width - 3)]
    top, left = (n if side in ("up", "left") else 0 for n in added)
    assert torch.equal(drawn[:, top : top + height, left : left + width], given)


def test_one_picture_serves_a_batch_and_each_is_the_one_drawn_alone(loaded, planned):
    given = picture()
    both = outpaint(loaded, planned, [5, 6], Outpainting(given, "right", 2)).tokens
    alone = outpaint(loaded, planned, [6], Outpainting(given, "right", 2)).tokens
    assert torch.equal(both[1:], alone)
    assert not torch.equal(both[0], both[1])


def test_no_turn_has_the_noise_of_another(loaded):
    """With nothing but noise to draw from, equal noise would give equal halves."""
    hot = session.plan(
        loaded, "a red car", SamplingChoice(temperature=100.0), schedule=ScheduleChoice(1)
    )
    drawn = outpaint(loaded, hot, [5], Outpainting(picture(), "right", 2)).tokens
    assert not torch.equal(drawn[..., 7:11], drawn[..., 11:])


def test_progress_counts_all_turns_and_can_end_the_drawing(loaded, planned):
    seen = []
    chosen = Outpainting(picture(), "up", 3)
    drawing = outpaint(loaded, planned, [5], chosen, lambda n, t: seen.append((n, t.shape)))
    assert len(seen) == drawing.passes == 12
    assert [n for n, _ in seen] == sorted(n for n, _ in seen)
    assert seen[-1] == (GRID.size, (1, GRID.size))
    assert drawing.notes == ("Outpainting: 3 x 3 rows, side 'up'; 14x7 tokens.",)

    def stop(decided, tokens):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outpaint(loaded, planned, [5], chosen, stop)


def test_there_is_no_trace_of_several_grids(loaded, planned):
    drawing = outpaint(loaded, planned, [5], Outpainting(picture(), "up"))
    with pytest.raises(InputError, match="an outpainted picture has no trace"):
        _ = drawing.traces


BAD = {
    "too low": (picture(4, 9), "left", "of 4x9 tokens cannot be continued on the side 'left'"),
    "too wide": (picture(5, 9), "down", "its width must be 7, and the other side 2 or more"),
    "too short": (picture(5, 2), "right", "its height must be 5, and the other side 3 or more"),
    "codes": (picture() + CODES, "up", "encode the picture with this model"),
    "batch": (picture(count=3), "up", "3 pictures are given to edit, and 2 are to be drawn"),
}


@pytest.mark.parametrize(("tokens", "side", "said"), BAD.values(), ids=BAD)
def test_pictures_that_do_not_fit_are_one_sentence(loaded, planned, tokens, side, said):
    with pytest.raises(InputError, match=said):
        outpaint(loaded, planned, [5, 6], Outpainting(tokens, side))


def test_settings_and_models_that_cannot_outpaint_are_one_sentence():
    with pytest.raises(InputError, match="side is 'north'; choose one of left, right, up, down"):
        Outpainting(picture(), "north")
    with pytest.raises(InputError, match="times is 0; choose 1 to 16"):
        Outpainting(picture(), "left", 0)
    with pytest.raises(InputError, match="draws in raster order, and outpainting needs one"):
        Outpainting(picture(), "left").check_fits(tiny_model(), 1)
