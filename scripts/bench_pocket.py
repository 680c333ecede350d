"""Time and passes of drawing with the pocket model, without and with retrieval, by window.

    python scripts/bench_pocket.py [--seeds 7] [--threads 2]

Every seed is drawn with each setting in turn, so a machine that speeds up or slows down does so for
all of them. Prints medians, and the median of each setting's ratio to plain sequential drawing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from arrag_engine import shipped
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.index import load_index
from arrag_engine.retrieval import layers_of, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling

WEIGHTS = (None, 0.1, 0.3)
WINDOWS = (1, 4, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", default="a red car")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    checkpoint = load_checkpoint(shipped.resolve("pocket", shipped.MODELS), torch.float32)
    model = checkpoint.model
    prompt = checkpoint.prompt_encoder.encode(a.prompt)
    index = load_index(shipped.resolve("pocket", shipped.INDEXES))
    retriever = make_retriever(index, model.config.grid, model.vq.codebook(model.device))
    settings = [(weight, window) for weight in WEIGHTS for window in WINDOWS]
    times: dict[tuple, list[float]] = {s: [] for s in settings}
    passes: dict[tuple, list[int]] = {s: [] for s in settings}
    for seed in range(-1, a.seeds):  # the first one warms up
        for weight, window in settings:
            used = None if weight is None else retriever.using(RetrievalOptions(weight))
            recipe = Recipe(prompt.ids, prompt.unconditional, Sampling(), layers_of(used))
            started = time.perf_counter()
            drawing = draw_pictures(model, recipe, [seed], window)
            model.vq.decode(drawing.tokens)
            if seed >= 0:
                times[weight, window].append(time.perf_counter() - started)
                passes[weight, window].append(drawing.passes)
    report(times, passes, a.threads)


def report(times: dict[tuple, list[float]], passes: dict[tuple, list[int]], threads: int) -> None:
    plain = times[None, 1]
    print(f"{threads} threads, {len(plain)} seeds; seconds a picture, ratio to plain, passes")
    print("| retrieval | window | seconds (min-max) | ratio | passes |\n|---|---|---|---|---|")
    for (weight, window), seconds in times.items():
        ratio = statistics.median(s / p for s, p in zip(seconds, plain, strict=True))
        name = "none" if weight is None else f"λ = {weight}"
        spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"
        count = statistics.median(passes[weight, window])
        print(f"| {name} | {window} | {spread} | {ratio:.2f} | {count:.0f} |")


if __name__ == "__main__":
    main()
