"""How `bench_gpu` measures: a clock that ends a drawing, a model that is skipped, a counter of
operations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from arrag_engine.decode import KeptPasses, Recipe, draw_pictures
from arrag_engine.decode.canvas import begin
from arrag_engine.decode.fixed import FixedPass, shape_of
from arrag_engine.decode.graphs import Recording
from arrag_engine.grid import RASTER
from arrag_engine.models.base import RasterBackbone
from arrag_engine.models.janus.model import JanusConfig
from scripts import gpu


class Enough(Exception):
    """As much of a picture is drawn as was asked for."""


class Clock:
    """Notes the time of each step of a drawing, and ends it after some tokens.

    A step ends when the host has read its tokens, so the device's work is part of it.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.at: list[float] = []
        self.decided: list[int] = []

    def __call__(self, decided: int, tokens: np.ndarray) -> None:
        self.at.append(time.perf_counter())
        self.decided.append(decided)
        if decided >= self.tokens:
            raise Enough


class Tape:
    """What the passes of a drawing left, to repeat the drawing without their arithmetic."""

    def __init__(self, one: FixedPass) -> None:
        self.one, self.left, self.played = one, [], 0

    def record(self) -> None:
        """In place of `FixedPass.compute`."""
        FixedPass.compute(self.one)
        self.left.append(self.one.drawn.clone())

    def play(self) -> None:
        """In place of `FixedPass.compute`, in the same drawing once more."""
        self.one.drawn.copy_(self.left[self.played])
        self.played += 1


@dataclass(frozen=True)
class Pace:
    """How fast a drawing went. Times are in seconds."""

    opening: float
    """From the call to the first step: prompt, first token, what is made for the first drawing."""
    steps: list[float]
    """Of each pass after the first kept tokens."""
    token: float
    """Mean time of a token drawn after the first step or the first kept ones."""

    @property
    def step(self) -> float:
        return statistics.median(self.steps)

    def picture(self, size: int) -> float:
        """A whole picture of `size` tokens, scaled."""
        return self.opening + (size - 1) * self.token


def pace(
    model: Any,
    recipe: Recipe,
    seeds: Sequence[int],
    window: int,
    kept: KeptPasses,
    tokens: int,
) -> Pace:
    """Draw until `tokens` more than the first kept ones are decided in every picture."""
    stands = begin(0, model.grid.size, recipe.kept).decided
    clock = Clock(min(stands + tokens, model.grid.size))
    gpu.synchronise(model.device)
    started = time.perf_counter()
    with suppress(Enough):
        draw_pictures(model, recipe, seeds, window, clock, model.device, kept)
    begun = max(i for i, n in enumerate(clock.decided) if n <= max(stands, clock.decided[0]))
    at = clock.at[begun:]
    count = clock.decided[-1] - clock.decided[begun]
    return Pace(
        clock.at[0] - started,
        [b - a for a, b in pairwise(at)],
        (at[-1] - at[0]) / count,
    )


def pass_of(
    model: RasterBackbone, recipe: Recipe, batch: int, window: int, kept: KeptPasses
) -> FixedPass:
    """The pass that draws `batch` pictures in this window."""
    return kept.find(FixedPass, model, recipe, shape_of(model, recipe, batch, window, model.device))


class Skipped:
    """A model of some sizes whose network is left out: its logits are the same random ones in every
    pass. What a drawing then takes is the engine's own time, and the choice of tokens."""

    order = RASTER

    def __init__(self, config: JanusConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.grid, self.vocab = config.grid, config.vq.codebook_size
        self.code_dim, self.hidden_size = config.vq.codebook_dim, 1
        self.max_positions, self.vq = config.llama.max_positions, None
        shape = (2, min(16, self.grid.size), self.vocab)
        self.fixed = torch.randn(shape, device=device, generator=gpu.seeded(device, 0)).to(dtype)
        self.nothing = torch.zeros(1, device=device, dtype=dtype)

    def parameters(self) -> Iterator[Tensor]:
        yield self.fixed

    def embed_text(self, ids: Tensor) -> Tensor:
        return self.nothing.expand(*ids.shape, 1)

    embed_codes = embed_text

    def new_cache(self, rows: int, capacity: int, device: torch.device) -> Any:
        return SimpleNamespace(keys=self.nothing.clone(), values=self.nothing.clone())

    def prefill(
        self, x: Tensor, cache: Any, copies: int = 1, hook: Any = None, first: int = 0
    ) -> Tensor:
        return x[:, -1]

    def predict(self, hidden: Tensor, hook: Any = None) -> Tensor:
        return self.fixed[: len(hidden), 0]

    def logits(self, x: Tensor, starts: Any = None, cache: Any = None, hook: Any = None) -> Tensor:
        return self.fixed[: x.shape[0], : x.shape[1]]


class Operations(TorchDispatchMode):
    """Counts operations that a device would run: all but views and allocations."""

    FREE = ("aten::empty", "aten::_unsafe_view", "aten::_reshape_alias", "aten::lift_fresh")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        self.count += not (func.is_view or func._schema.name.startswith(self.FREE))
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def operations(one: FixedPass) -> int:
    """Device operations of the arithmetic of a pass."""
    with Operations() as counted:
        one.compute()
    return counted.count


def address_checks(config: JanusConfig, dtype: torch.dtype) -> list[float]:
    """Seconds that a recorded pass takes to see whether its weights have moved."""
    recording = Recording(NoReplay(), gpu.model_without_storage(config, dtype).drawing_parts)
    return [gpu.seconds(torch.device("cpu"), recording.holds) for _ in range(100)]


class NoReplay:
    def replay(self) -> None:
        raise AssertionError("never repeated")


@torch.inference_mode()
def kernels(one: FixedPass) -> int:
    """Kernels and copies that an uncaptured pass starts on a CUDA device."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        one.compute()
        torch.cuda.synchronize()
    events = profile.events() or ()
    return sum(event.device_type.name == "CUDA" for event in events)
