"""The shipped index of small things."""

import numpy as np
import pytest

import arrag_engine as arrag
from arrag_engine.retrieval import Steering
from scripts.pocket.bench import SCORER
from scripts.pocket.bench.scorer import load_scorer
from scripts.pocket.halves import SIDES, on_sides, side_mask


@pytest.fixture(scope="module")
def small():
    return arrag.load_index("pocket-small")


def test_every_picture_has_its_side_its_caption_and_its_licence(small):
    assert {source.name.split("/")[0] for source in small.sources} == set(SIDES)
    assert all(source.caption and source.licence for source in small.sources)


def test_two_things_that_the_model_never_saw_stand_each_on_its_own_side(small):
    model = arrag.load_model("pocket", "fp32", "cpu")
    layers = [
        arrag.Layer(small, thing, include=f"{side}/*", steering=Steering(side_mask(side, 8)))
        for side, thing in zip(SIDES, ("flamingo", "guitar"), strict=True)
    ]
    drawing = arrag.draw(model, "a flamingo and a guitar", range(4), layers)
    pixels = np.stack([np.asarray(image) for image in drawing.images])
    found = load_scorer(SCORER).detect(pixels)
    right = [on_sides(one, "flamingo", "guitar") for one in found]
    assert np.mean(right) >= 0.75
