"""Time and passes of drawing with the shipped models, without and with retrieval: `pocket` by
window, `pocket-o` by steps.

    python scripts/bench_pocket.py [--seeds 7] [--threads 2] [--out FILE]

Every seed is drawn with each setting in turn, so a machine that speeds up or slows down does so for
all of them. Prints medians, and their ratio to that of `pocket` drawing token by token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from arrag_engine import shipped
from arrag_engine.checkpoints import Checkpoint, load_checkpoint
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.index import load_index
from arrag_engine.models.base import Prompt
from arrag_engine.models.ops import pack_linears
from arrag_engine.recommended import recommended
from arrag_engine.retrieval import Retriever, layers_of, make_retriever
from arrag_engine.settings import Sampling, Schedule

WEIGHTS = (None, 0.1, 0.3)
WINDOWS = (1, 4, 16)
MASKED_WEIGHTS = (None, 0.9)
STEPS = (8, 16, 32)


@dataclass(frozen=True)
class Setting:
    """What is drawn: a shipped model, λ (None: the model alone), and window or steps."""

    model: str
    weight: float | None
    window: int = 1
    steps: int = 1

    def recipe(self, subject: Subject) -> Recipe:
        prompt, retriever = subject.prompt, subject.retriever
        if self.weight is None:
            layers = layers_of(None)
        else:
            layers = layers_of(retriever.using(replace(retriever.options, weight=self.weight)))
        grow = subject.schedule.grow and self.weight is not None
        schedule = replace(subject.schedule, steps=self.steps, grow=grow)
        streams = (prompt.ids, prompt.unconditional)
        return Recipe(*streams, subject.sampling, layers, schedule=schedule)


SETTINGS = [Setting("pocket", weight, window) for weight in WEIGHTS for window in WINDOWS]
SETTINGS += [Setting("pocket-o", weight, 1, steps) for weight in MASKED_WEIGHTS for steps in STEPS]
BASE = SETTINGS[0]


@dataclass(frozen=True)
class Subject:
    """A shipped model with its index, at its recommended values."""

    checkpoint: Checkpoint
    prompt: Prompt
    retriever: Retriever
    sampling: Sampling
    schedule: Schedule


def open_subject(name: str, text: str) -> Subject:
    checkpoint = load_checkpoint(shipped.resolve(name, shipped.MODELS), torch.float32)
    advised, model = recommended(checkpoint), checkpoint.model
    pack_linears(model)
    index = load_index(shipped.resolve(name, shipped.INDEXES))
    codebook, options = model.vq.codebook(model.device), advised.retrieval
    index = index.rekeyed(advised.keys)
    index = index if model.order.raster else index.by_bits()
    retriever = make_retriever(index, model.grid, codebook, options, order=model.order)
    prompt = checkpoint.prompt_encoder.encode(text)
    return Subject(checkpoint, prompt, retriever, advised.sampling, advised.schedule)


def timed(subject: Subject, setting: Setting, seed: int) -> tuple[float, int]:
    """Seconds from the prompt to the pixels, and passes."""
    model, recipe = subject.checkpoint.model, setting.recipe(subject)
    started = time.perf_counter()
    drawing = draw_pictures(model, recipe, [seed], setting.window)
    with torch.inference_mode():
        model.vq.decode(drawing.tokens)
    return time.perf_counter() - started, drawing.passes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", default="a red car")
    parser.add_argument("--out", type=Path, help="JSON to write")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    subjects = {name: open_subject(name, a.prompt) for name in ("pocket", "pocket-o")}
    taken: dict[Setting, list[tuple[float, int]]] = {setting: [] for setting in SETTINGS}
    for seed in range(-1, a.seeds):  # the first one warms up
        for setting in SETTINGS:
            one = timed(subjects[setting.model], setting, max(seed, 0))
            if seed >= 0:
                taken[setting].append(one)
    rows = [row_of(setting, each, taken[BASE]) for setting, each in taken.items()]
    report(rows, a.threads, a.seeds)
    if a.out:
        a.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def row_of(
    setting: Setting, each: list[tuple[float, int]], base: list[tuple[float, int]]
) -> dict[str, Any]:
    """Seconds, their median's ratio to that of `BASE`, and passes."""
    seconds = [one[0] for one in each]
    ratio = statistics.median(seconds) / statistics.median(one[0] for one in base)
    passes = statistics.median(one[1] for one in each)
    return asdict(setting) | {"seconds": seconds, "ratio": ratio, "passes": passes}


def report(rows: list[dict[str, Any]], threads: int, seeds: int) -> None:
    print(f"{threads} threads, {seeds} seeds; medians (min-max), ratio of medians to the first row")
    print("| model | retrieval | window | seconds | ratio | passes |\n|---|---|---|---|---|---|")
    for row in rows:
        seconds, weight = row["seconds"], row["weight"]
        name = "none" if weight is None else f"λ = {weight}"
        spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"
        told = f"| {row['model']} | {name} | {row['window']} | {spread} "
        print(told + f"| {row['ratio']:.2f} | {row['passes']:.0f} |")


if __name__ == "__main__":
    main()
