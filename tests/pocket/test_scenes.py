"""Scenes: the same ones for the same seed, and the truth about them is what was drawn."""

import backgrounds
import captions
import numpy as np
import pytest
from backgrounds import SIZE, STEP
from captions import KINDS, RELATIONS, Meaning
from data import Composer, Scene
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pocket.made import NAMES

seeds = st.integers(0, 2**32)
COUNTS = {"single_object": {1}, "colors": {1}, "counting": {2, 3, 4}}


def meaning(scene: Scene, said: Meaning) -> Meaning:
    """What a caption should say of a scene; the relation is looked at by another test."""
    things = tuple((thing.name, thing.color) for thing in scene.things)
    background = scene.background if said.background else None
    return Meaning(scene.kind, things, said.relation, background, scene.style)


def test_the_same_seed_gives_the_same_scenes(composer, sprites):
    again = Composer(sprites["fluent"], NAMES, "train")
    a, b = np.random.default_rng(5), np.random.default_rng(5)
    for _ in range(20):
        left, right = composer.scene(a), again.scene(b)
        assert left == right
        assert np.array_equal(left.pixels, right.pixels)
    assert composer.scene(np.random.default_rng(6)) != composer.scene(np.random.default_rng(7))


@pytest.mark.parametrize("style", ["fluent", "google"])
@given(seed=seeds, kind=st.sampled_from(KINDS))
@settings(max_examples=60, deadline=None)
def test_captions_read_back_say_what_is_drawn(sprites, style, seed, kind):
    scene = Composer(sprites[style], NAMES, "train").scene(np.random.default_rng(seed), kind)
    said = captions.read(scene.caption)
    assert said == meaning(scene, said)
    assert (said.relation is not None) == (kind == "position")
    if said.background is None:
        assert scene.background in {*backgrounds.UNNAMED, *backgrounds.GRADIENTS}
    assert len(scene.things) in COUNTS.get(kind, {2})


@given(seed=seeds)
@settings(max_examples=40, deadline=None)
def test_the_first_thing_stands_where_the_caption_says(sprites, seed):
    composer = Composer(sprites["fluent"], NAMES, "train")
    scene = composer.scene(np.random.default_rng(seed), "position")
    a, b = (np.array(thing.box) for thing in scene.things)
    gap = (a[:2] + a[2:] - b[:2] - b[2:]) / 2
    direction = RELATIONS[captions.read(scene.caption).relation]
    assert gap @ np.array(direction) > SIZE / 4


@given(seed=seeds)
@settings(max_examples=40, deadline=None)
def test_things_fill_their_boxes_and_nothing_else(sprites, seed):
    """The made sprites are opaque noise: the background shows outside the boxes only."""
    scene = Composer(sprites["fluent"], NAMES, "train").scene(np.random.default_rng(seed))
    empty = (backgrounds.paint(scene.background) * 255).round().astype(np.uint8)
    covered = np.zeros((SIZE, SIZE), dtype=int)
    for left, top, right, bottom in (thing.box for thing in scene.things):
        assert left % STEP == top % STEP == 0
        covered[top:bottom, left:right] += 1
    assert covered.max() == 1
    changed = (scene.pixels != empty).any(axis=2)
    assert not changed[covered == 0].any()
    assert changed[covered == 1].mean() > 0.99


def test_loose_scenes_leave_the_raster(sprites):
    loose = Composer(sprites["fluent"], NAMES, "train", loose=1.0)
    rng = np.random.default_rng(0)
    boxes = [thing.box for _ in range(30) for thing in loose.scene(rng).things]
    assert any(left % STEP for left, *_ in boxes)
    assert all(box[0] >= 0 and box[2] <= SIZE and box[1] >= 0 and box[3] <= SIZE for box in boxes)


def test_nothing_hides_on_a_background_of_its_own_colour(composer):
    rng = np.random.default_rng(1)
    scenes = [composer.scene(rng, "color_attr") for _ in range(200)]
    assert all(thing.color != scene.background for scene in scenes for thing in scene.things)


@pytest.mark.parametrize(
    ("caption", "kind"),
    [
        ("an umbrella", "single_object"),
        ("a red car on an orange background", "colors"),
        ("two strawberries on the beach", "counting"),
        ("a cat left of an orange bus at night in flat style", "position"),
        ("a sun and a cat", "two_object"),
        ("a pink cat and a blue car in the snow", "color_attr"),
    ],
)
def test_captions_survive_reading_and_writing(caption, kind):
    said = captions.read(caption)
    assert said.kind == kind
    assert captions.write(said) == caption


@pytest.mark.parametrize("caption", ["", "a zeppelin", "a plaid car", "two sun", "cat", "a a cat"])
def test_other_captions_are_refused(caption):
    with pytest.raises(ValueError, match=r"has no thing|names something unknown"):
        captions.read(caption)


@pytest.mark.parametrize("name", backgrounds.NAMES)
def test_backgrounds_have_their_colours(name):
    pixels = (backgrounds.paint(name) * 255).round().astype(int)
    assert pixels.shape == (SIZE, SIZE, 3)
    assert (np.ptp(pixels, axis=(0, 1)).max() == 0) == (name in backgrounds.PLAIN)
    first = backgrounds.PLAIN.get(name) or (
        backgrounds.GRADIENTS[name][0]
        if name in backgrounds.GRADIENTS
        else backgrounds.SCENERIES[name][1][0][1]
    )
    assert tuple(pixels[0, 0]) == tuple(first)
