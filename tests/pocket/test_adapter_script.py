"""What the pocket model's adapter is trained on."""

from collections import Counter

import numpy as np
import pytest
import train_adapter
from concepts import LEARNT, UNSEEN
from data import Composer
from PIL import Image
from train_adapter import OTHER, POSTER, draw_scenes, posterise

from tests.pocket.made import NAMES


@pytest.fixture
def composers(sprites, monkeypatch):
    monkeypatch.setattr(train_adapter, "OTHER", NAMES)
    composer = Composer(sprites["fluent"], NAMES, "train")
    return {"known": composer, "other": composer, "poster": composer}


def test_it_learns_from_nothing_that_it_is_tested_on():
    assert not set(OTHER) & set(LEARNT)
    assert not set(OTHER) & set(UNSEEN)
    assert len(OTHER) == 186


def test_scenes_are_as_many_as_asked_and_the_same_every_time(composers):
    counts = {"known": 5, "other": 2 * len(NAMES), "poster": 3}
    scenes = draw_scenes(composers, counts, (0, 1))
    assert scenes == draw_scenes(composers, counts, (0, 1))
    assert scenes != draw_scenes(composers, counts, (0, 2))
    other = scenes[5:-3]
    assert Counter(scene.things[0].name for scene in other) == dict.fromkeys(NAMES, 2)
    assert all(len(scene.things) == 1 for scene in other)
    assert [POSTER in scene.caption for scene in scenes] == [False] * (len(scenes) - 3) + [True] * 3
    assert {scene.style for scene in scenes} == {"fluent"}


def test_posters_have_four_steps_of_each_colour():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 4), dtype=np.uint8)
    found = np.asarray(posterise(Image.fromarray(pixels, "RGBA")))
    assert len(np.unique(found[..., 0])) == 4
    assert (found[..., 3] == pixels[..., 3]).all()
