"""ComfyUI's progress bar, and its stop button."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import comfy.model_management
import comfy.utils

Item = TypeVar("Item")


class Progress:
    """Progress callback for work in several parts, one bar after the other.

    Raises what ComfyUI raises when the person has pressed stop.
    """

    def __init__(self) -> None:
        self.part = ""

    def __call__(self, part: str, done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if part != self.part:
            self.part, self.bar = part, comfy.utils.ProgressBar(total)
        self.bar.update_absolute(done, total)


def watched(items: Sequence[Item]) -> Iterator[Item]:
    """The items, with a progress bar, until the person presses stop."""
    progress = Progress()
    for i, item in enumerate(items):
        progress("items", i, len(items))
        yield item
    progress("items", len(items), len(items))
