"""The driver: draws every task of a benchmark with every method and seed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..bounds import MAX_BATCH
from ..checkpoints import Checkpoint
from ..files import write_text
from ..session import Plan, draw
from .benchmark import Benchmark, Part, Progress, Task, Wanted, no_progress
from .journal import Journal
from .pictures import Pictures, decode_tokens


def draw_tokens(
    checkpoint: Checkpoint, planned: Plan, seeds: Sequence[int], batch: int = MAX_BATCH
) -> np.ndarray:
    """Tokens [seeds, N] of a picture for each seed, drawn in batches."""
    drawn = []
    for first in range(0, len(seeds), batch):
        some = seeds[first : first + batch]
        drawing = draw(checkpoint, planned, some, kept=checkpoint.passes)
        drawn.append(drawing.tokens.flatten(1).numpy())
    return np.concatenate(drawn)


def draw_tasks(
    checkpoint: Checkpoint,
    benchmark: Benchmark[Wanted],
    tasks: Sequence[Task[Wanted]],
    method: str,
    seeds: Sequence[int],
    journal: Journal | None = None,
    kind: str = "",
) -> Iterator[Pictures]:
    """The scored pictures of one task after the other.

    Args:
        journal: Keeps tokens and scores; what is in it is not drawn again.
        kind: Of the tasks, for the journal.
    """
    journal = journal or Journal()

    def drawn(task: Task[Wanted]) -> dict:
        tokens = draw_tokens(checkpoint, benchmark.plan(task, method), seeds)
        scores = benchmark.score(task, method, tokens, decode_tokens(checkpoint, tokens))
        return {"tokens": tokens.tolist(), "scores": scores}

    for number, task in enumerate(tasks):
        key = ("drawn", kind, method, number)
        kept = journal.once(key, lambda task=task: drawn(task))
        tokens = np.array(kept["tokens"], np.int64)
        pixels = decode_tokens(checkpoint, tokens)
        captions = [task.text] * len(seeds)
        yield Pictures(captions, list(seeds), list(tokens), list(pixels), kept["scores"])


def draw_parts(
    checkpoint: Checkpoint,
    benchmark: Benchmark[Wanted],
    methods: Sequence[str],
    seeds: Sequence[int],
    progress: Progress = no_progress,
    journal: Journal | None = None,
) -> Iterator[tuple[Part, Pictures]]:
    """The pictures of each kind and method."""
    tasks = {kind: benchmark.tasks(kind) for kind in benchmark.kinds}
    done, total = 0, len(methods) * sum(map(len, tasks.values()))
    for kind, method in itertools.product(tasks, methods):
        progress("prompt", done, total, f"{kind} {method}")
        part = Pictures()
        drawn = draw_tasks(checkpoint, benchmark, tasks[kind], method, seeds, journal, kind)
        for pictures in drawn:
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
    journal: Journal | None = None,
) -> str:
    """Draw a benchmark with several methods; returns its tables.

    Args:
        methods: Some of METHODS.
        seeds: Of the pictures of each task.
        folder: For what the benchmark writes of each part as soon as it is drawn, `scores.json`
            and `table.txt`; made if it is not there.
        journal: Keeps every piece of work as soon as it is done.
    """
    journal = journal or Journal()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    tables = benchmark.measure(methods, progress, journal)
    parts: dict[Part, Pictures] = {}
    for part, pictures in draw_parts(checkpoint, benchmark, methods, seeds, progress, journal):
        parts[part] = pictures
        if folder is not None:
            benchmark.write(folder, part, pictures)
            write_text(folder / "scores.json", _scores(benchmark, parts))
    tables += benchmark.tables(parts, progress)
    text = "\n\n".join(table for table in tables if table)
    if folder is not None:
        write_text(folder / "table.txt", text + "\n")
    return text


def _scores(benchmark: Benchmark, parts: dict[Part, Pictures]) -> str:
    scores = [
        {"kind": kind, "method": method, **benchmark.summary((kind, method), pictures)}
        for (kind, method), pictures in parts.items()
    ]
    return json.dumps(scores, indent=1)
