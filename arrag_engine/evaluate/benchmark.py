"""What a benchmark tells the driver: the only things that this package knows of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from ..session import Plan
    from .journal import Journal
    from .pictures import Pictures

METHODS = ("plain", "daid", "control", "auto", "faid", "faid+daid")
"""auto: DAiD with the calibrated weight; control: DAiD, the index lacking what is asked for."""
ADAPTED = ("faid", "faid+daid")
"""Methods that draw with an adapter."""

Progress = Callable[[str, int, int, str], None]
"""Receives what is counted, how many are done, of how many, and a note on the current one."""
Part = tuple[str, str]
"""A kind of prompts and the method that drew them."""
Wanted = TypeVar("Wanted")
"""What a benchmark judges a picture by."""
Item = TypeVar("Item")


def no_progress(counted: str, done: int, total: int, note: str = "") -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class Task(Generic[Wanted]):
    """A picture to draw."""

    text: str
    """The prompt."""
    wanted: Wanted
    given: np.ndarray | None = None
    """Its first tokens."""


class Benchmark(Protocol[Wanted]):
    """What there is to draw, how, and what is made of it."""

    @property
    def kinds(self) -> Sequence[str]:
        """The kinds of prompts to draw."""
        ...

    def tasks(self, kind: str) -> Sequence[Task[Wanted]]:
        """What there is to draw of a kind."""
        ...

    def plan(self, task: Task[Wanted], method: str) -> Plan:
        """How a method draws a task."""
        ...

    def score(
        self, task: Task[Wanted], method: str, tokens: np.ndarray, pixels: np.ndarray
    ) -> list[dict[str, float]]:
        """Scores by name of each picture of a task.

        Args:
            tokens: [seeds, N].
            pixels: [seeds, H, W, 3] uint8.
        """
        ...

    def measure(self, methods: Sequence[str], progress: Progress, journal: Journal) -> list[str]:
        """Tables of what is measured without drawing; each piece of it is kept in the journal."""
        ...

    def summary(self, part: Part, pictures: Pictures) -> dict[str, Any]:
        """What `scores.json` says of a part."""
        ...

    def tables(self, parts: Mapping[Part, Pictures], progress: Progress) -> list[str]:
        """Tables of what was drawn."""
        ...

    def write(self, folder: Path, part: Part, pictures: Pictures) -> None:
        """Write the pictures of a part: a contact sheet, or files for another program to score."""
        ...


def evenly(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` items, evenly taken."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]
