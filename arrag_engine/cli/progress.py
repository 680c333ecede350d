"""Progress on stderr: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from tqdm import tqdm

QUIET = 5.0
"""Seconds: shorter work prints no lines, and no two lines are closer together."""
SILENCE = 30.0
"""Seconds after which a line is printed, however little was done."""
SHARE = 0.1
"""Of the whole: a line is printed after each."""


def short_time(seconds: float) -> str:
    """Such as 40 s, 12 min or 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Lines:
    """The part of `tqdm` that is used here, in lines."""

    def __init__(self, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.unit = unit
        self.clock = clock
        self.total: float | None = None
        self.n = self.initial = 0
        self.disable = False
        self.notes: dict[str, str] = {}
        self.begun = self.printed_at = clock()
        self.printed_n = 0

    def update(self, n: int = 1) -> None:
        self.n += n
        since = self.clock() - self.printed_at
        enough = self.total is not None and self.n - self.printed_n >= SHARE * self.total
        if not self.disable and (since >= SILENCE or (enough and since >= QUIET)):
            self._print()

    def set_description(self, text: str) -> None:
        self.notes["description"] = text

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self.notes["postfix"] = text

    def close(self) -> None:
        """Does nothing: lines stay."""

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _left(self) -> list[str]:
        """How long the rest takes at the pace so far, if there is a rest."""
        done = self.n - self.initial
        if self.total is None or done <= 0 or self.n >= self.total:
            return []
        seconds = (self.clock() - self.begun) / done * (self.total - self.n)
        return [f"about {short_time(seconds)} left"]

    def _print(self) -> None:
        of = "" if self.total is None else f" of {self.total} ({self.n / self.total:.0%})"
        seconds = f"{self.clock() - self.begun:.0f} s"
        line = ", ".join(
            [f"{self.unit} {self.n}{of}", seconds, *self._left(), *self.notes.values()]
        )
        print(line, file=sys.stderr, flush=True)
        self.printed_at, self.printed_n = self.clock(), self.n


def progress_bar(unit: str) -> tqdm | Lines:
    """Progress on stderr; work that takes no time shows none."""
    if sys.stderr.isatty():
        return tqdm(unit=unit, delay=1, leave=False)
    return Lines(unit)


def follow(bar: tqdm | Lines) -> Callable[[int, int], None]:
    def tick(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return tick


class Bars(ExitStack):
    """Progress of each thing that is counted, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.bars: dict[str, tqdm | Lines] = {}

    def __call__(self, unit: str, done: int, total: int, note: str = "") -> None:
        if unit not in self.bars:
            self.close()
            bar = self.bars[unit] = self.enter_context(progress_bar(unit))
            bar.total, bar.initial, bar.n = total, done, done  # what was done before takes no time
        if note:
            self.bars[unit].set_description(note)
        self.bars[unit].update(done - self.bars[unit].n)


def say(sentence: str) -> None:
    """Print a line above a bar."""
    tqdm.write(sentence, file=sys.stderr)
