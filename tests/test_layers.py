# ruff: noqa: F811 (fixtures of test_session)
"""What is chosen of several indexes: pictures, shared weights, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.errors import InputError
from arrag_engine.index import Calibration, SourceTable
from arrag_engine.layers import KeyChoice, Layer
from arrag_engine.retrieval import Steering
from arrag_engine.session import draw, plan
from tests.models.toy import ToyLoaded, ToyMasked, toy_index
from tests.test_session import checkpoint, measured, pandas  # noqa: F401
from tests.tiny import tiny_source

LEFT = np.zeros((6, 6), np.float32)
LEFT[:, :3] = 1
RIGHT = 1 - LEFT
CALIBRATION = Calibration((0.0,) * 6, 1.0, 0.2, 8, "first", 1.0)


def weights(planned):
    """The largest λ of each layer at each position [layers, N]."""
    return np.array([one.largest_weights for one in planned.recipe.layers])


def test_recommended_weights_share_the_places_where_layers_overlap(checkpoint, measured, pandas):
    half = Steering(LEFT)
    planned = plan(checkpoint, "x", layers=[Layer(pandas, ""), Layer(pandas, "", steering=half)])
    found = weights(planned).reshape(2, 6, 6)
    assert measured.retrieval.weight == 1
    assert np.allclose(found[:, 1:, :3], 0.5)
    assert np.allclose(found[0, 1:, 3:], 1)
    assert not found[1, :, 3:].any()
    assert any("made smaller" in note for note in planned.notes)
    assert [note[:8] for note in planned.notes if note.startswith("Layer")] >= ["Layer 1:"]


def test_layers_that_do_not_overlap_keep_their_weights(checkpoint, measured, pandas):
    sides = [Layer(pandas, "", steering=Steering(side)) for side in (LEFT, RIGHT)]
    planned = plan(checkpoint, "x", layers=sides)
    assert weights(planned).max(axis=1).tolist() == [1, 1]
    assert not any("made smaller" in note for note in planned.notes)


def test_layers_that_search_the_same_share_the_search(checkpoint, measured, pandas):
    def layer(index, **choices):
        return Layer(index, "", weight=0.2, **choices)

    alike = [layer(pandas), layer(pandas, steering=Steering(LEFT))]
    others = [
        layer(pandas, include="*panda*"),
        layer(pandas, keys=KeyChoice("causal-12")),
        layer(replace(pandas)),
    ]
    placed = []

    def place(index):
        placed.append(index)
        return replace(index)

    recipe = plan(checkpoint, "x", layers=[*alike, *others], place=place).recipe
    for layers in (recipe.layers, recipe.searched().each):
        sources = [one.source for one in layers]
        assert sources[0] is sources[1]
        assert len({id(source) for source in sources}) == 4
    assert len(placed) == 4


def test_a_recommended_weight_takes_what_the_chosen_ones_leave(checkpoint, measured, pandas):
    planned = plan(checkpoint, "x", layers=[Layer(pandas, "", weight=0.7), Layer(pandas, "")])
    assert np.allclose(weights(planned).max(axis=1), [0.7, 0.3])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([{"weight": 0.6}, {"weight": 0.6}], r"2 layers add up to 1.2 .*at most 0.5 for each"),
        ([{"weight": 0.5}] * 3, r"3 layers add up to 1.5 .*at most 0.333 for each"),
        (
            [{"weight": 0.9}, {"weight": 0.6, "steering": Steering(RIGHT / 2)}],
            r"add up to 1.2 .*0.9 \+ 0.3.*at most 0.666 for each, or regions that do not overlap",
        ),
        ([{"weight": "auto"}, {"weight": 0.8}], r"0.5 \+ 0.8.*at most 0.5 for each"),
    ],
)
def test_weights_above_1_together_are_refused(checkpoint, pandas, layers, message):
    calibrated = replace(pandas, calibration=CALIBRATION)
    used = [
        Layer(calibrated, "" if one["weight"] != "auto" else "{prompt}", **one) for one in layers
    ]
    with pytest.raises(InputError, match=message):
        plan(checkpoint, "a panda", layers=used)


def test_weights_that_fit_exactly_are_taken(checkpoint, pandas):
    thirds = [Layer(pandas, "", weight=0.333)] * 3
    assert weights(plan(checkpoint, "x", layers=thirds)).sum(axis=0).max() <= 1
    tenths = [Layer(pandas, "", weight=0.1)] * 10
    plan(checkpoint, "x", layers=tenths)


def test_include_and_exclude_choose_among_the_subject(checkpoint, pandas):
    def images(**chosen):
        [one] = plan(checkpoint, "a panda", layers=[Layer(pandas, **chosen)]).recipe.layers
        return list(range(5)) if one.source.images is None else one.source.images.tolist()

    assert images() == [1, 2]
    assert images(exclude="two *") == [1]
    assert images(only="", exclude="car\n lamp ") == [1, 3]
    assert images(only="", include="car", exclude="=0.png") == [2]
    assert images(only="", include="=3.png\n\n=4.png") == [3, 4]


def test_excluded_pictures_never_appear(checkpoint, pandas):
    planned = plan(checkpoint, "x", layers=[Layer(pandas, "", weight=1.0, exclude="=0.png\ncar")])
    for trace in draw(checkpoint, planned, range(6)).traces:
        hits = trace.layers[0].hits
        assert set(hits.sources[hits.found()]) <= {1, 3, 4}


def test_no_picture_left_is_refused(checkpoint, pandas):
    with pytest.raises(InputError, match=r"leave none of the 5 pictures of the index.*'\*'"):
        plan(checkpoint, "x", layers=[Layer(pandas, "", exclude="*")])
    with pytest.raises(InputError, match="exclude is 3; write a pattern"):
        Layer(pandas, "", exclude=3)


def test_a_name_is_excluded_whatever_it_holds(index):
    names = ["a[1]*.png", "a\nb  c", "<b>", "aa", "a"]
    table = SourceTable.from_sources([replace(tiny_source(i), name=n) for i, n in enumerate(names)])
    for number, name in enumerate(names):
        line = "=" + " ".join(name.split())
        assert table.any_of([line]).tolist() == [number]


def test_a_layer_without_a_subject_drops_out(checkpoint, pandas):
    layers = [Layer(pandas), Layer(pandas, "lamp", weight=0.4)]
    planned = plan(checkpoint, "zebra", layers=layers)
    assert len(planned.recipe.layers) == 1
    assert "Layer 1: No caption of the index has 'zebra': nothing is retrieved." in planned.notes


def test_indexes_of_different_vqs_are_refused(model_file, index, pandas):
    checkpoint = load_checkpoint(model_file, torch.float32)
    other = replace(index, codebook=np.roll(index.codebook, 1, axis=0))
    with pytest.raises(InputError, match=r"VQ"):
        plan(checkpoint, "x", layers=[Layer(pandas, ""), Layer(other, "")])


def test_layers_that_cannot_be_used_are_refused(checkpoint, pandas):
    for values, message in (
        ({"index": "pocket"}, "index is 'pocket'; give what load_index returns"),
        ({"index": pandas, "keys": None}, "keys is None; give a KeyChoice"),
        ({"index": pandas, "steering": 3}, "steering is 3; give a Steering"),
    ):
        with pytest.raises(InputError, match=message):
            Layer(**values)
    with pytest.raises(InputError, match="a layer works at no position"):
        plan(checkpoint, "x", layers=[Layer(pandas, "", steering=Steering(start=0.3, end=0.3))])


def test_a_pattern_that_matches_nothing_is_named(checkpoint, pandas):
    planned = plan(checkpoint, "x", layers=[Layer(pandas, "", exclude="=nosuch\ncar")])
    assert "No picture of the index matches '=nosuch' of include or exclude." in planned.notes


def test_numbers_are_asked_for_where_auto_leaves_nothing(checkpoint, pandas):
    calibrated = replace(pandas, calibration=replace(CALIBRATION, weights=(9.0,) + (0.0,) * 5))
    layers = [Layer(calibrated, weight="auto")] * 2
    with pytest.raises(InputError, match="choose numbers in place of auto, or regions"):
        plan(checkpoint, "a panda", layers=layers)


def test_layers_that_work_one_after_the_other_may_have_their_whole_weights():
    """In any order a span is a part of the drawing."""
    loaded, index = ToyLoaded(ToyMasked()), toy_index()

    def planned(*spans):
        layers = [
            Layer(index, "", weight=1.0, steering=Steering(start=start, end=end))
            for start, end in spans
        ]
        return plan(loaded, "a red car", layers=layers)

    first, last = planned((0, 0.5), (0.51, 1)).recipe.layers
    early, late = np.arange(35) < 5, np.arange(35) < 30
    assert [one.works(early).any() for one in (first, last)] == [True, False]
    assert [one.works(late).any() for one in (first, last)] == [False, True]
    with pytest.raises(InputError, match=r"2 layers add up to 2 .*at most 0.5 for each"):
        planned((0, 0.6), (0.5, 1))
    with pytest.raises(InputError, match="a layer works at no position"):
        planned((0.31, 0.31))
