"""How long to train on few pictures."""

from __future__ import annotations

from .settings import TrainSettings

ENOUGH = 60
"""Times that every picture comes up in a training that is long enough for few pictures."""
MANY = 2 * ENOUGH
"""Times from which on a shorter training is suggested."""


def suggest_steps(
    settings: TrainSettings, pictures: int, processes: int, seconds: float, rehearsing: bool
) -> str | None:
    """A sentence that suggests fewer steps, if the pictures come up far more often than helps.

    Args:
        pictures: To train on.
        seconds: That an update takes.
        rehearsing: Whether the base's own pictures have their share of each update.
    """
    share = 1 - settings.rehearse if rehearsing else 1.0
    a_step = settings.pictures_a_step * processes * share
    times = settings.steps * a_step / pictures
    if times < MANY:
        return None
    steps = max(1, round(ENOUGH * pictures / a_step))
    return (
        f"{settings.steps} steps show each of {pictures} pictures {times:.0f} times and take about "
        f"{duration(settings.steps * seconds)}; --steps {steps} in another --work folder shows "
        f"each {ENOUGH} times, which is enough for so few, and takes about "
        f"{duration(steps * seconds)}"
    )


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours."""
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"
