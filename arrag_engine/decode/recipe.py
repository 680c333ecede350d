"""What goes into a drawing, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from ..faid import Faid
from ..retrieval import Layers, PatchSource, Retriever
from ..settings import Sampling, Schedule
from .kept import Kept
from .trace import Trace

Progress = Callable[[int, np.ndarray], None]
"""Called at every step with the number of positions that all pictures have decided, and the
tokens [B, N] so far, -1 where there is none yet. What it raises ends the drawing."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """Everything that decides a picture, besides the model and the seed."""

    prompt: Sequence[int]
    """Text ids [T]; the last one opens the picture."""
    unconditional: Sequence[int]
    """Ids of the stream that guidance leads away from, of any length. The last one is the
    prompt's."""
    sampling: Sampling
    layers: Sequence[Retriever] = ()
    """What is retrieved, and what it weighs."""
    faid: Faid | None = None
    """An adapter, which receives what the layers find whatever their weights are. At strength 0 it
    is not used at all."""
    kept: Kept | None = None
    """Tokens that stand from the beginning."""
    schedule: Schedule = field(default_factory=Schedule)
    """Of a model that draws in any order."""
    place: Callable[[Any], PatchSource] | None = None
    """Where the sources of the layers are searched while drawing, for example on a GPU; they find
    the same there. Nothing of that place outlives the drawing."""

    @property
    def streams(self) -> tuple[Sequence[int], ...]:
        """Ids of the prompts that run: conditional and, with guidance, unconditional."""
        return (self.prompt,) if self.sampling.cfg == 1 else (self.prompt, self.unconditional)

    @property
    def longest(self) -> int:
        """Ids of the longest prompt that runs."""
        return max(map(len, self.streams))

    def retrieval(self) -> Layers:
        """The layers, which find what the adapter receives too."""
        wanted = 0 if self.adapter is None else self.adapter.wanted
        return Layers(tuple(self.layers)).receiving(wanted)

    def searched(self) -> Layers:
        """The same at its place."""
        layers, place = self.retrieval(), self.place
        if place is None:
            return layers
        sources = {id(one.source): one.source for one in layers.each}
        placed = {key: place(source) for key, source in sources.items()}
        return Layers(tuple(replace(one, source=placed[id(one.source)]) for one in layers.each))

    @property
    def adapter(self) -> Faid | None:
        """The adapter, if it changes anything."""
        return self.faid if self.faid is not None and self.faid.works else None


@dataclass(frozen=True)
class Drawing:
    """Finished token grids."""

    tokens: Tensor
    """Codes [B, height, width] int64."""
    passes: int
    """Passes of the model after the prompt."""
    tracers: Sequence[Callable[[], Trace]]
    """What makes the traces."""
    notes: tuple[str, ...] = ()
    """What happened that a person should know."""

    @cached_property
    def traces(self) -> list[Trace]:
        """One per picture. Made at first use: a trace looks up what the drawing did not need."""
        return [trace() for trace in self.tracers]
