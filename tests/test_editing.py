"""Which tokens of an edited picture stay."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from arrag_engine import session
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.decode import Kept, Recipe
from arrag_engine.decode.reference import next_logits
from arrag_engine.editing import (
    keep_outside,
    keep_probable,
    least_probable,
    masked_positions,
    own_probabilities,
)
from arrag_engine.errors import InputError
from arrag_engine.grid import Grid
from arrag_engine.settings import Sampling
from tests.models.toy import GRID as TOY_GRID
from tests.models.toy import ToyMasked
from tests.tiny import BLANK, PROMPT

CPU = torch.device("cpu")
GRID = Grid(3, 4)


def slow_positions(mask, grid):
    """The cells of a mask [H, W] in the grid's shape that hold a masked pixel, pixel by pixel."""
    height, width = mask.shape
    masked = set()
    for r, c in zip(*np.nonzero(mask >= 0.5), strict=True):
        for i in range(grid.size):
            row, column = divmod(i, grid.width)
            down = r < (row + 1) * height / grid.height and r + 1 > row * height / grid.height
            across = c < (column + 1) * width / grid.width and c + 1 > column * width / grid.width
            if down and across:
                masked.add(i)
    return sorted(masked)


@pytest.mark.parametrize("size", [(3, 4), (24, 32), (25, 33)])
def test_a_mask_of_any_size_covers_the_cells_with_a_masked_pixel(size):
    rng = np.random.default_rng(0)
    for share in (0.001, 0.02, 0.2):
        mask = (rng.random(size) < share).astype(np.float32)
        found = np.flatnonzero(masked_positions(mask[None], GRID)[0]).tolist()
        assert found == slow_positions(mask, GRID)


def test_no_spot_is_too_small():
    mask = np.zeros((1, 300, 400), np.float32)
    mask[0, 150, 210] = 1
    assert np.flatnonzero(masked_positions(mask, GRID)[0]).tolist() == [6]


def test_a_soft_edge_ends_at_half():
    mask = np.linspace(0, 1, 32, dtype=np.float32)[None, None].repeat(24, axis=1)
    assert masked_positions(mask, GRID).reshape(3, 4).tolist() == [[False, False, True, True]] * 3


def test_a_mask_of_another_shape_is_cropped_as_the_picture_is():
    mask = np.zeros((1, 24, 64), np.float32)
    mask[0, :, :16] = 1  # all of it is outside the middle 32 columns
    mask[0, :, 47] = 1
    assert masked_positions(mask, GRID).reshape(3, 4).tolist() == [[False] * 3 + [True]] * 3


def test_unmasked_tokens_stay():
    tokens = np.arange(12).reshape(1, 3, 4)
    mask = np.zeros((2, 3, 4), np.float32)
    mask[0, 1], mask[1, :, 2] = 1, 1
    kept = keep_outside(tokens, mask, GRID)
    assert kept.tokens.tolist() == [list(range(12))]
    assert np.array_equal(~kept.mask, masked_positions(mask, GRID))
    assert not keep_outside(tokens, None, GRID).mask.any()


@pytest.mark.parametrize(
    ("tokens", "mask", "said"),
    [
        (np.zeros((1, 4, 4), int), None, "tokens are of 4x4 positions, the model draws 3x4"),
        (np.zeros((1, 3, 4), int), np.zeros((1, 9, 9)), "the mask is empty"),
        (np.zeros((2, 3, 4), int), np.ones((3, 3, 4)), "of 2 pictures and the mask of 3"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tokens, mask, said):
    with pytest.raises(InputError, match=said):
        keep_outside(tokens, mask, GRID)


@pytest.mark.parametrize(
    ("share", "wanted"), [(0, []), (0.01, [4]), (0.5, [1, 4]), (0.75, [1, 3, 4]), (1, [1, 2, 3, 4])]
)
def test_the_least_probable_come_first_and_ties_go_to_the_earlier(share, wanted):
    p = np.array([0.0, 0.2, 0.3, 0.2, 0.1])
    candidates = np.array([False, True, True, True, True])
    assert np.flatnonzero(least_probable(p, candidates, share)).tolist() == wanted


def recipe_of(kept, sampling=None):
    return Recipe(PROMPT, BLANK, sampling or Sampling(3.0, 0.3, 5, 0.5), kept=kept)


def random_kept(model, rows=1):
    rng = np.random.default_rng(4)
    return Kept(
        rng.integers(0, model.vocab, (rows, model.grid.size)),
        rng.random((rows, model.grid.size)) < 0.4,
    )


def test_probabilities_are_the_models_token_by_token(model):
    """Guided, with the prompt; neither temperature nor top-p plays a part."""
    kept = random_kept(model)
    recipe = recipe_of(kept)
    p = own_probabilities(model, recipe, CPU)
    for position in (0, 7, 35):
        cond, uncond = next_logits(model, recipe, kept.tokens[0], position)
        wanted = torch.softmax(uncond + 3 * (cond - uncond), dim=-1)[kept.tokens[0, position]]
        assert p[position] == pytest.approx(float(wanted), rel=1e-4)


def test_a_share_keeps_the_most_probable_of_what_is_masked(model):
    kept = random_kept(model, 2)
    for share in (0.0, 0.4, 1.0):
        more = keep_probable(model, recipe_of(kept), share).kept
        for i in (0, 1):
            masked = ~kept.mask[i]
            p = own_probabilities(model, recipe_of(kept.of(i)), CPU)
            assert np.array_equal(~more.mask[i], least_probable(p, masked, share))
            assert more.mask[i][kept.mask[i]].all()


def test_a_model_in_any_order_ranks_by_what_is_kept():
    toy = ToyMasked()
    rng = np.random.default_rng(1)
    kept = Kept(
        rng.integers(0, toy.vocab, (1, TOY_GRID.size)), rng.random((1, TOY_GRID.size)) < 0.5
    )
    recipe = Recipe([1, 3, 3], [29, 29, 29], Sampling(cfg=2.0), kept=kept)
    more = keep_probable(toy, recipe, 0.5).kept
    assert (~more.mask).sum() == -(-int((~kept.mask).sum()) // 2)
    other = kept.tokens.copy()
    other[~kept.mask] = (other[~kept.mask] + 1) % toy.vocab
    changed = own_probabilities(toy, replace(recipe, kept=Kept(other, kept.mask)), CPU)
    assert changed[kept.mask[0]] == pytest.approx(own_probabilities(toy, recipe, CPU)[kept.mask[0]])


@pytest.fixture(scope="module")
def checkpoint(model_file):
    return load_checkpoint(model_file, torch.float32)


@pytest.mark.parametrize("redraw", [0.0, 0.25, 1.0])
def test_a_share_of_the_masked_tokens_is_drawn_anew(checkpoint, redraw):
    kept = random_kept(checkpoint.model)
    planned = session.plan(checkpoint, "red", kept=kept, redraw=redraw)
    count = int(np.ceil(redraw * (~kept.mask).sum()))
    assert planned.notes[-1].startswith(f"Editing: {count} of 36 tokens are drawn anew")
    drawn = session.draw(checkpoint, planned, [3, 4]).tokens.flatten(1).numpy()
    changed = (drawn != kept.tokens).any(axis=0)
    assert changed.sum() <= count
    assert not changed[kept.mask[0]].any()
    assert changed.any() == (redraw > 0)


def test_what_cannot_be_edited_is_refused_before_drawing(checkpoint):
    model = checkpoint.model
    whole = Kept(np.zeros((1, 36), int), np.ones((1, 36), bool))
    for options, said in (
        ({"redraw": 0.5}, "redraw is 0.5, but there are no tokens"),
        ({"kept": random_kept(model), "redraw": 2}, "redraw is 2; choose 0 to 1"),
        ({"kept": whole}, "the mask is empty"),
        ({"kept": Kept.first(np.arange(3), 9)}, "9 tokens of a picture are given"),
    ):
        with pytest.raises(InputError, match=said):
            session.plan(checkpoint, "red", **options)
    planned = session.plan(checkpoint, "red", kept=random_kept(model, 2))
    with pytest.raises(InputError, match="2 pictures are given to edit, and 3 are to be drawn"):
        session.draw(checkpoint, planned, [1, 2, 3])


@pytest.mark.parametrize("shape", [(1, 1000), (1000, 1), (1, 1), (1, 7)])
def test_a_mask_may_be_one_pixel_wide(shape):
    assert masked_positions(np.ones((1, *shape), np.float32), GRID).all()
