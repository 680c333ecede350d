"""How long to train on few pictures."""

import pytest

from arrag_engine.train import TrainSettings, suggest_steps
from arrag_engine.train.advice import ENOUGH, duration


def test_few_pictures_get_fewer_steps_and_a_time():
    settings = TrainSettings(steps=1000, batch=4, accumulation=4, rehearse=0.5)
    found = suggest_steps(settings, 20, 1, 3.6, rehearsing=True)
    steps = round(ENOUGH * 20 / 8)
    assert found.startswith(
        "1000 steps show each of 20 pictures 400 times and take about 60 minutes; "
        f"--steps {steps} in another --work folder shows each {ENOUGH} times"
    )
    assert found.endswith(f"takes about {duration(steps * 3.6)}")


def test_what_is_suggested_is_not_shortened_again():
    for pictures in (1, 7, 22, 300):
        settings = TrainSettings(steps=10**6)
        steps = int(suggest_steps(settings, pictures, 1, 1.0, True).split("--steps ")[1].split()[0])
        assert suggest_steps(TrainSettings(steps=steps), pictures, 1, 1.0, True) is None


def test_rehearsal_and_processes_change_how_often_pictures_come_up():
    settings = TrainSettings(steps=100, batch=4, accumulation=4, rehearse=0.5)
    pictures = 100 * 8 // ENOUGH
    assert suggest_steps(settings, pictures, 1, 1.0, rehearsing=True) is None
    assert suggest_steps(settings, pictures, 1, 1.0, rehearsing=False) is not None
    assert suggest_steps(settings, pictures, 4, 1.0, rehearsing=True) is not None


def test_many_pictures_get_no_suggestion():
    assert suggest_steps(TrainSettings(), 5000, 1, 1.0, True) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 seconds"), (80, "80 seconds"), (600, "10 minutes"), (9000, "2.5 hours")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words
