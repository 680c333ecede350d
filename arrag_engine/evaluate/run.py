"""The driver: draws every task of a benchmark with every method and seed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..bounds import MAX_BATCH
from ..checkpoints import Checkpoint
from ..decode import draw_pictures
from ..files import atomic_write
from .benchmark import Benchmark, Part, Progress, Task, Wanted, no_progress
from .pictures import Pictures, decode_tokens


def draw_tokens(
    checkpoint: Checkpoint,
    benchmark: Benchmark[Wanted],
    task: Task[Wanted],
    method: str,
    seeds: Sequence[int],
) -> np.ndarray:
    """Tokens [seeds, N] of a task drawn once for each seed, in batches."""
    recipe = benchmark.recipe(task, method)
    drawn = []
    for first in range(0, len(seeds), MAX_BATCH):
        drawing = draw_pictures(checkpoint.model, recipe, seeds[first : first + MAX_BATCH])
        drawn.append(drawing.tokens.flatten(1).numpy())
    return np.concatenate(drawn)


def draw_tasks(
    checkpoint: Checkpoint,
    benchmark: Benchmark[Wanted],
    tasks: Sequence[Task[Wanted]],
    method: str,
    seeds: Sequence[int],
) -> Iterator[Pictures]:
    """The scored pictures of one task after the other."""
    for task in tasks:
        tokens = draw_tokens(checkpoint, benchmark, task, method, seeds)
        pixels = decode_tokens(checkpoint, tokens)
        scores = benchmark.score(task, method, tokens, pixels)
        captions = [task.text] * len(seeds)
        yield Pictures(captions, list(seeds), list(tokens), list(pixels), scores)


def draw_parts(
    checkpoint: Checkpoint,
    benchmark: Benchmark[Wanted],
    methods: Sequence[str],
    seeds: Sequence[int],
    progress: Progress = no_progress,
) -> Iterator[tuple[Part, Pictures]]:
    """The pictures of each kind and method."""
    tasks = {kind: benchmark.tasks(kind) for kind in benchmark.kinds}
    done, total = 0, len(methods) * sum(map(len, tasks.values()))
    for kind, method in itertools.product(tasks, methods):
        progress("prompt", done, total, f"{kind} {method}")
        part = Pictures()
        for pictures in draw_tasks(checkpoint, benchmark, tasks[kind], method, seeds):
            part.extend(pictures)
            done += 1
            progress("prompt", done, total, f"{kind} {method}")
        yield (kind, method), part


def evaluate(
    checkpoint: Checkpoint,
    benchmark: Benchmark[Wanted],
    methods: Sequence[str],
    seeds: Sequence[int],
    progress: Progress = no_progress,
    folder: Path | None = None,
) -> str:
    """Draw a benchmark with several methods; returns its tables.

    Args:
        methods: Some of METHODS.
        seeds: Of the pictures of each task.
        folder: For what the benchmark writes of each part as soon as it is drawn, `scores.json`
            and `table.txt`; made if it is not there.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    tables = benchmark.measure(methods, progress)
    parts: dict[Part, Pictures] = {}
    for part, pictures in draw_parts(checkpoint, benchmark, methods, seeds, progress):
        parts[part] = pictures
        if folder is not None:
            benchmark.write(folder, part, pictures)
            _write(folder / "scores.json", _scores(benchmark, parts))
    tables += benchmark.tables(parts, progress)
    text = "\n\n".join(table for table in tables if table)
    if folder is not None:
        _write(folder / "table.txt", text + "\n")
    return text


def _scores(benchmark: Benchmark, parts: dict[Part, Pictures]) -> str:
    scores = [
        {"kind": kind, "method": method, **benchmark.summary(pictures)}
        for (kind, method), pictures in parts.items()
    ]
    return json.dumps(scores, indent=1)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
