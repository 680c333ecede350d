"""Speed on a GPU at Janus-Pro's and Show-o's real shapes with random weights.

    python -m scripts.bench_gpu [--device cuda] [--rows 1b 7b ...] [--out FILE] [--small]

Prints a table and saves it with the card's name. Where a row would take long, a few tokens are
drawn and scaled; random weights say nothing of how many guesses hold, so the windowed rows take
what the shipped pocket model accepts in the same run. Whatever does not fit the card or is not
installed is named. Nothing is asserted. `--small` runs the same code with tiny shapes.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from scripts import gpu, gpu_rows
from scripts.gpu_rows import REAL, SMALL, Bench, Row, Rows, free

GROUPS: dict[str, Callable[[Bench], Rows]] = {
    "1b": gpu_rows.rows_1b,
    "floor": gpu_rows.rows_floor,
    "windows": gpu_rows.rows_windows,
    "transformers": gpu_rows.rows_transformers,
    "daid": gpu_rows.rows_daid,
    "faid": gpu_rows.rows_faid,
    "batch": gpu_rows.rows_batch,
    "host": gpu_rows.rows_host,
    "operations": gpu_rows.rows_operations,
    "7b": gpu_rows.rows_7b,
    "showo": gpu_rows.rows_showo,
    "showo-transformers": gpu_rows.rows_showo_transformers,
    "kernels": gpu_rows.rows_kernels,
}
ANYWHERE = ["host", "operations"]
"""Need no weights, so that a machine without a GPU runs them at the real shapes."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default=gpu.default_device())
    parser.add_argument("--rows", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--minutes", type=float, default=4, help="no group starts after these")
    parser.add_argument("--small", action="store_true", help="tiny shapes, for a test of this file")
    parser.add_argument("--out", type=Path, help="default docs/measured/gpu-CARD.json")
    a = parser.parse_args(argv)
    device, started = gpu.device_of(a.device), time.perf_counter()
    if device.type == "cpu" and not a.small and set(a.rows) - set(ANYWHERE):
        parser.error(f"a CPU takes hours: give --small, or --rows {' '.join(ANYWHERE)}")
    machine = gpu.describe(device)
    print(", ".join(f"{name} {value}" for name, value in machine.items() if value))
    goals = device.type == "cuda" and not a.small
    if not goals:
        print(f"{'tiny' if a.small else 'real'} shapes on {device}: no figure of a GPU")
    print("| what | measured | bar | aim | note |\n|---|---|---|---|---|", flush=True)
    bench = Bench(SMALL if a.small else REAL, device)
    out = a.out or Path("docs/measured") / f"gpu-{slug(machine['card'])}.json"
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    for name in a.rows:
        taken = time.perf_counter() - started
        if taken > 60 * a.minutes:
            left_out[name] = f"{a.minutes:g} minutes were over"
        elif reason := measure(bench, name, goals, rows):
            left_out[name] = reason
        result = {"machine": machine, "small": a.small, "seconds": round(taken, 1)}
        gpu.save(out, {**result, "rows": [asdict(row) for row in rows], "left_out": left_out})
    print("\n".join(f"left out: {name}: {why}" for name, why in left_out.items()))
    print(f"{time.perf_counter() - started:.0f} s")


def measure(bench: Bench, name: str, goals: bool, rows: list[Row]) -> str:
    """Print the rows of a group as they come and add them to `rows`; why others are missing.

    Args:
        goals: Whether the bars apply; they are for a GPU at the real shapes.
    """
    reason = ""
    try:
        for found in GROUPS[name](bench):
            rows.append(found if goals else replace(found, bar=None, aim=None))
            print(rows[-1], flush=True)
    except Exception as error:  # minutes on a card are rare: the other groups still run
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    free(bench.device)
    return reason


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
