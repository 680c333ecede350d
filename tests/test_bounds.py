"""What every setting may be, and what is said of what it may not."""

import dataclasses
import math

import numpy as np
import pytest

from arrag_engine import bounds
from arrag_engine.bounds import BATCH, SEED, TEMPERATURE, TRAINING, WEIGHT, Bound, picture_seeds
from arrag_engine.errors import InputError
from arrag_engine.faid import Faid
from arrag_engine.index import KeySpec, SearchChoice
from arrag_engine.layers import KeyChoice, Layer
from arrag_engine.settings import RetrievalOptions, Sampling, SamplingChoice, Schedule
from arrag_engine.train import TrainSettings

ALL = {
    **{name: value for name, value in vars(bounds).items() if isinstance(value, Bound)},
    **{f"train {name}": bound for name, bound in TRAINING.items()},
}
WRONG = {
    "none": None,
    "list": [1],
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "true": True,
    "text": "much",
    "huge": 10**5000,
    "array": np.ones(3),
}


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("name", ALL)
def test_what_is_no_number_in_range_is_one_sentence(name, value):
    with pytest.raises(InputError) as refused:
        ALL[name].check(value)
    assert str(refused.value).startswith(f"{ALL[name].name} is ")
    assert "; choose " in str(refused.value)
    assert len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ALL)
def test_ends_are_inside_unless_they_are_excluded(name):
    bound = ALL[name]
    for end, excluded in ((bound.low, bound.above), (bound.high, bound.below)):
        if excluded:
            with pytest.raises(InputError):
                bound.check(end)
        else:
            assert bound.check(end) == end
    for beyond in (bound.high + 1, bound.low - 1):
        with pytest.raises(InputError):
            bound.check(beyond)


@pytest.mark.parametrize(
    ("bound", "told"),
    [
        (Bound("x", 0, 1), "0 to 1"),
        (Bound("x", 0, 1, above=True), "more than 0, at most 1"),
        (Bound("x", 0, 1, below=True), "0 or more, less than 1"),
        (TEMPERATURE, "0.0001 to 100, or 0"),
        (WEIGHT, "0 to 1, or auto"),
    ],
)
def test_a_range_is_told_in_words(bound, told):
    assert str(bound) == told


def test_numbers_of_numpy_are_numbers_and_fractions_are_not_whole():
    assert BATCH.check(np.int64(3)) == 3
    assert WEIGHT.check(np.float32(0.5)) == 0.5
    assert TEMPERATURE.check(0) == 0
    with pytest.raises(InputError, match=r"batch is 2\.0; choose a whole number, 1 to 64"):
        BATCH.check(2.0)
    with pytest.raises(InputError, match=r"^--batch is 65; choose 1 to 64$"):
        BATCH.check(65, "--batch")


def test_a_batch_has_one_seed_after_the_other_and_none_without_end():
    assert picture_seeds(5, 3) == [5, 6, 7]
    assert picture_seeds(-1, 1) == [-1]
    with pytest.raises(InputError, match="batch is 1000000000; choose 1 to 64"):
        picture_seeds(0, 10**9)
    with pytest.raises(InputError, match="seed is None"):
        picture_seeds(None, 1)
    with pytest.raises(InputError, match="seed is"):
        picture_seeds(SEED.high + 1, 1)


SETTINGS = {
    Sampling: ("cfg", "temperature", "top_k", "top_p"),
    RetrievalOptions: tuple(f.name for f in dataclasses.fields(RetrievalOptions)),
    Schedule: ("steps", "temperature", "curve", "power", "confidence"),
    TrainSettings: (*TRAINING, "hops", "init", "semantics"),
    KeySpec: ("neighborhood", "borders", "space", "position_weight"),
    SearchChoice: ("structure", "recall_target"),
}
FIELDS = [(kind, name) for kind, names in SETTINGS.items() for name in names]


@pytest.mark.parametrize("value", [None, [1], math.nan, True, "much", 10**400])
@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda x: getattr(x, "__name__", x))
def test_settings_of_the_engine_refuse_what_no_widget_has_checked(kind, name, value):
    with pytest.raises(InputError):
        kind(**{name: value})


def test_every_number_of_the_training_is_bounded():
    numbers = {f.name for f in dataclasses.fields(TrainSettings) if f.type in ("int", "float")}
    assert numbers == set(TRAINING)


@pytest.mark.parametrize("value", [[1], math.nan, True, "much"])
def test_choices_of_a_drawing_refuse_it_too(index, value):
    for name in ("cfg", "temperature", "top_p"):
        with pytest.raises(InputError):
            SamplingChoice(**{name: value})
    for name in (f.name for f in dataclasses.fields(RetrievalOptions)):
        with pytest.raises(InputError):
            Layer(index, **{name: value})
    for name in ("strength", "candidates", "semantics"):
        with pytest.raises(InputError):
            Faid(None, **{name: value})
    for name in ("neighborhood", "borders", "space", "position_weight"):
        with pytest.raises(InputError):
            KeyChoice(**{name: value}).spec(KeySpec(), KeySpec())
