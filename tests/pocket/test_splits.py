"""Nothing that should be held out leaks into training."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from captions import STYLE_WORDS
from concepts import CONCEPTS, LEARNT, UNSEEN
from data import Composer, split_of
from sprites import BASE_SIZE, PACKAGES, STYLES, read_archive
from tokenizer import make_tokenizer, vocabulary

from tests.pocket.made import NAMES

ARCHIVES = os.environ.get("EMOJI_ARCHIVES")


def test_unseen_things_are_not_learnt():
    assert len(UNSEEN) == len(set(UNSEEN)) == 32
    assert not set(LEARNT) & set(UNSEEN)
    assert {*LEARNT, *UNSEEN} <= CONCEPTS.keys()
    assert len(set(CONCEPTS.values())) == len(CONCEPTS), "two names show the same emoji"


def test_the_tokenizer_does_not_know_unseen_names_or_the_unseen_style():
    tokenizer = make_tokenizer()
    assert all(len(tokenizer.encode(name).ids) == 1 for name in CONCEPTS)
    assert not {*UNSEEN, *STYLE_WORDS["google"].split()} - {"in"} & set(vocabulary())
    assert set(LEARNT) <= set(vocabulary())


def drawn(composer: Composer, seed: int, count: int) -> tuple[set[str], set[str]]:
    """Digests of the pixels, and of the truth, of `count` scenes."""
    rng = np.random.default_rng(seed)
    scenes = [composer.scene(rng) for _ in range(count)]
    assert all(split_of(s.style, s.background, s.things) == composer.split for s in scenes)
    return (
        {hashlib.sha256(s.pixels.tobytes()).hexdigest() for s in scenes},
        {repr((s.background, sorted(s.things, key=repr))) for s in scenes},
    )


def test_no_scene_is_in_both_splits(sprites):
    """With two names, chance would draw many scenes twice."""
    few = NAMES[:2]
    train, held_out = (Composer(sprites["fluent"], few, split) for split in ("train", "held_out"))
    trained, tested = drawn(train, 0, 1500), drawn(held_out, 1, 500)
    assert len(drawn(train, 1, 500)[1] & trained[1]) > 50
    assert not trained[0] & tested[0]
    assert not trained[1] & tested[1]


def test_about_an_eighth_is_held_out(composer):
    rng = np.random.default_rng(0)
    composer.split = "held_out"
    held_out = [composer.scene(rng) for _ in range(40)]
    assert len({scene.caption for scene in held_out}) > 30
    boxes = [(n, n, n + 8, n + 8) for n in range(800)]
    things = [[type(held_out[0].things[0])("cat", None, box)] for box in boxes]
    share = np.mean([split_of("fluent", "white", t) == "held_out" for t in things])
    assert 0.08 < share < 0.17


@pytest.mark.skipif(not ARCHIVES, reason="EMOJI_ARCHIVES names no folder with the emoji packages")
@pytest.mark.parametrize("style", STYLES)
def test_the_packages_have_every_concept(style):
    pictures = read_archive(Path(ARCHIVES) / PACKAGES[style].archive, style, CONCEPTS)
    assert pictures.keys() == CONCEPTS.keys()
    assert all(max(picture.size) == BASE_SIZE for picture in pictures.values())
