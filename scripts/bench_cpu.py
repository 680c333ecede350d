"""Time of a decoding step on the CPU at Janus-Pro-1B's shapes: dtypes, threads, busy neighbours.

    python scripts/bench_cpu.py [--dtypes fp32 int8 bf16] [--threads 1 2] [--busy 0 1] [--rounds 5]

A step is a pass of `--width` tokens in two streams (guidance) behind 300 others, with random
weights. All cases take turns, so that what else runs on the machine falls on all alike. Prints
medians, and medians of the ratio to the first row of the same round; nothing is asserted. The
checkpoint is that of `bench_1b.py`.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from arrag_engine.checkpoints import load_checkpoint, resolve_dtype, resolve_storage
from arrag_engine.models.janus.model import JanusPro
from arrag_engine.models.ops import pack_linears
from scripts.bench_1b import write_checkpoint

Case = tuple[int, str, int]
"""Busy processes beside it, dtype, threads."""
BEFORE = 300
"""Tokens that a step attends to."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or is to be written")
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "int8", "bf16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--width", type=int, default=1, help="tokens of a pass")
    parser.add_argument("--steps", type=int, default=5, help="of a case in a round")
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    folder = a.folder or Path(tempfile.gettempdir()) / "arrag-janus-1b"
    if not (folder / "config.json").is_file():
        write_checkpoint(folder)
    models = {dtype: load(folder, dtype) for dtype in a.dtypes}
    cases = list(itertools.product(a.busy, a.dtypes, a.threads))
    measured: dict[Case, list[float]] = {case: [] for case in cases}
    for done in range(a.rounds + 1):
        for case in cases:
            step = step_ms(models[case[1]], case, a.width, a.steps)
            if done:  # the first round warms up
                measured[case].append(step)
        report(measured, done)


def load(folder: Path, dtype: str) -> JanusPro:
    """The model ready to draw."""
    computed = resolve_dtype(dtype, torch.device("cpu"))
    model = load_checkpoint(folder, computed, storage=resolve_storage(dtype)).janus
    pack_linears(model)
    return model


@torch.inference_mode()
def step_ms(model: JanusPro, case: Case, width: int, steps: int) -> float:
    """Median milliseconds of a step."""
    busy, _, threads = case
    torch.set_num_threads(threads)
    cache = model.new_cache(2, BEFORE + width, model.device)
    x = torch.randn(2, width, model.hidden_size, dtype=model.dtype)
    taken = []
    with neighbours(busy):
        for _ in range(steps + 1):
            started = time.perf_counter()
            model.logits(x, [BEFORE, BEFORE], cache)
            taken.append(time.perf_counter() - started)
    return 1000 * statistics.median(taken[1:])


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that compute without a pause."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def spin() -> None:
    while True:
        pass


def report(measured: dict[Case, list[float]], rounds: int) -> None:
    if not rounds:
        return
    first = next(iter(measured.values()))
    print(f"after {rounds} rounds; one step, batch 1, PyTorch {torch.__version__}:")
    for (busy, dtype, threads), steps in measured.items():
        ratio = statistics.median(a / b for a, b in zip(steps, first, strict=True))
        median = statistics.median(steps)
        print(
            f"  busy {busy}  {dtype:<5} threads {threads}  median {median:7.1f} ms"
            f"  min {min(steps):7.1f}  max {max(steps):7.1f}  ratio {ratio:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
