"""Speed, memory, and how many tokens a pass decides."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...checkpoints import Checkpoint
from ...errors import InputError
from ...session import draw
from ...settings import SamplingChoice
from ..benchmark import Progress
from ..journal import Journal
from ..listed import Way
from .effort import Effort

Load = Callable[[str], Checkpoint]
"""Loads the model in a dtype."""
WIDE = 16
"""Tokens a pass, where accepted ones are counted."""


def measure_pace(
    load: Load,
    dtypes: Sequence[str],
    prompt: str,
    effort: Effort,
    journal: Journal,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Seconds a picture and gigabytes of a GPU by dtype, batch and window. What cannot run here
    says why; the model of a dtype is loaded only if something of it is not measured yet."""
    wanted = [
        (dtype, batch, window)
        for dtype in dtypes
        for batch in effort.batches
        for window in effort.windows
    ]
    rows, checkpoint, loaded = [], None, ""
    for done, (dtype, batch, window) in enumerate(wanted):
        progress("speed", done, len(wanted), dtype)
        key = ("pace", dtype, batch, window)
        if journal.get(key) is None:
            if loaded != dtype:
                checkpoint = None
                release()
                checkpoint, loaded = _loaded(load, dtype), dtype
            journal.put(key, _row(checkpoint, prompt, batch, window, effort.rounds))
        rows.append({"dtype": dtype, "batch": batch, "window": window, **journal.get(key)})
    progress("speed", len(wanted), len(wanted), "")
    return rows


def release() -> None:
    """Give the memory of a model that nobody holds back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _loaded(load: Load, dtype: str) -> Checkpoint | str:
    try:
        return load(dtype)
    except (InputError, RuntimeError) as error:  # RuntimeError: the device has no room
        return _reason(error)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _row(
    checkpoint: Checkpoint | str | None, prompt: str, batch: int, window: int, rounds: int
) -> dict[str, Any]:
    if not isinstance(checkpoint, Checkpoint):
        return {"failed": checkpoint}
    if window > 1 and not checkpoint.model.order.raster:
        return {"failed": "the model draws in any order, which has no windows"}
    device = checkpoint.model.device
    try:
        planned = Way(checkpoint).plan(prompt, "plain")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds, passes = [], 0
        for _ in range(rounds):
            begun = time.perf_counter()
            drawing = draw(checkpoint, planned, range(batch), window, kept=checkpoint.passes)
            seconds.append(time.perf_counter() - begun)
            passes = drawing.passes
    except (InputError, RuntimeError) as error:
        release()
        return {"failed": _reason(error)}
    found: dict[str, Any] = {"seconds": round(min(seconds) / batch, 3), "passes": passes}
    if device.type == "cuda":
        found["gigabytes"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    return found


def accepted_tokens(
    way: Way, prompts: Sequence[str], effort: Effort, journal: Journal, progress: Progress
) -> list[dict[str, Any]]:
    """Tokens that a pass decides in windows of 16, by method and temperature; of a model that draws
    in any order there are none."""
    model = way.checkpoint.model
    if not model.order.raster:
        return []
    rows = []
    wanted = [(m, t) for m in ("plain", "daid") for t in effort.temperatures]
    for done, (method, temperature) in enumerate(wanted):
        progress("temperature", done, len(wanted), method)

        def work(method: str = method, temperature: float = temperature) -> float:
            passes = 0
            chosen = Way(
                way.checkpoint, way.layers, sampling=SamplingChoice(temperature=temperature)
            )
            for prompt in prompts[: effort.paced]:
                planned = chosen.plan(prompt, method)
                kept = way.checkpoint.passes
                passes += draw(way.checkpoint, planned, [0], WIDE, kept=kept).passes
            return round(len(prompts[: effort.paced]) * model.grid.size / max(1, passes), 3)

        found = journal.once(("accepted", method, temperature), work)
        rows.append({"method": method, "temperature": temperature, "tokens a pass": found})
    progress("temperature", len(wanted), len(wanted), "")
    return rows
