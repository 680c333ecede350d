"""Scores of many pictures, and their contact sheet."""

import numpy as np
import pytest
from PIL import Image, ImageColor

from arrag_engine.evaluate.pictures import COLUMNS, LABEL, MARK, SHOWN, Pictures, write_sheet


def drawn(rights, seeds, side=16):
    pixels = [np.full((side, side, 3), 10 * n % 256, np.uint8) for n in range(len(rights))]
    tokens = [np.zeros(4, np.int64)] * len(rights)
    scores = [{"right": float(right)} for right in rights]
    return Pictures(["a red car"] * len(rights), seeds, tokens, pixels, scores)


def test_scores_are_averaged_over_the_tasks_of_a_seed():
    both = Pictures.joined([drawn([1, 0], [9, 5]), drawn([1, 1], [9, 5]), drawn([1, 0], [9, 5])])
    assert both.by_seed("right") == (pytest.approx(1 / 3), 1.0)
    assert both.mean("right") == pytest.approx(4 / 6)
    assert both.mean("copied") is None
    assert Pictures().mean("right") is None


def test_sheets_show_pictures_with_frames_that_tell_whether_they_are_right(tmp_path):
    rights = [n % 3 == 0 for n in range(10)]
    write_sheet(drawn(rights, [0] * 10), tmp_path / "s.png", "right")
    sheet = np.asarray(Image.open(tmp_path / "s.png"))
    width, height = 16 + 8, 16 + LABEL + 8
    assert sheet.shape == (2 * height, COLUMNS * width, 3)
    for number, right in enumerate(rights):
        y, x = number // COLUMNS * height, number % COLUMNS * width
        assert tuple(sheet[y + 2, x + 2]) == ImageColor.getrgb(MARK[right])
        assert (sheet[y + 4 : y + 20, x + 4 : x + 20] == 10 * number).all()


def test_a_sheet_of_many_pictures_shows_some(tmp_path):
    write_sheet(drawn([True] * 25 * 8, [0] * 200, 4), tmp_path / "s.png", "right")
    assert Image.open(tmp_path / "s.png").height == SHOWN // COLUMNS * (4 + LABEL + 8)
