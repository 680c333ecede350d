"""CPU time of steering on the shipped pocket model.

    python -m scripts.bench_steering layers [--seeds 7] [--out docs/measured/steering-speed.json]
    python -m scripts.bench_steering unused --against CHECKOUT [--seeds 7] [--out …]
    python -m scripts.bench_steering filter [--pictures 6945] [--out …]

`layers`: the same pictures drawn by one layer and by steered ones. A variant that must draw what
the one layer draws is checked to do so: then the difference is steering alone. `unused`: pictures
without steering, in this checkout and in one of another commit. All variants take turns, one
picture each; a time is the CPU time of a whole picture, from the prompt to the pixels. `filter`:
CPU time of a look-up restricted to a share of the pictures of an exact index of a million patches,
made of the shipped one's with noise.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import arrag_engine as arrag
from arrag_engine.files import write_text
from arrag_engine.index import PatchIndex, SourceTable, create_index

PROMPT = "a flamingo"
FREE = 1000
"""A distance that nothing exceeds."""
HALF = np.repeat([[1.0, 0.0]], 2, axis=0)
"""A region: the left half."""
COMMANDS = {"one layer, λ 1": "1.0", "one layer, λ 0.3": "0.3"}
"""What `unused` draws -> what the other process is asked."""

SHARES = (0.1, 0.5, 0.9)
NOISE, QUERIES, ROUNDS, NEIGHBOURS = 0.05, 6, 3, 64

Variants = dict[str, list[arrag.Layer]]


def steered(**steering: Any) -> Any:
    """A `Steering`; imported here, because `serve` runs in commits that have none."""
    from arrag_engine.retrieval import Steering

    return Steering(**steering)


def whole_variants(index: PatchIndex) -> tuple[Variants, Variants]:
    """(layers that draw one picture, others), of the whole index, with λ 0.3 in all."""

    def layer(weight: float, include: str = "", **steering: Any) -> arrag.Layer:
        limits = steered(**steering)
        return arrag.Layer(index, only="", weight=weight, include=include, steering=limits)

    both = [layer(0.15), layer(0.15)]
    same = steered_variants(layer, 0.3) | {"two layers everywhere, of the same pictures": both}
    parts = [layer(0.15, "known/*"), layer(0.15, "unseen/*\nstyle/*")]
    return same, {"two layers everywhere, of a part of the pictures each": parts}


def subject_variants(index: PatchIndex) -> tuple[Variants, Variants]:
    """The same, of the pictures of one subject, with λ 1."""

    def layer(weight: float, **steering: Any) -> arrag.Layer:
        return arrag.Layer(index, only="flamingo", weight=weight, steering=steered(**steering))

    limits = {f"copy limit {size}": [layer(1.0, copy_limit=size)] for size in (32, 8)}
    return steered_variants(layer, 1.0), limits


def steered_variants(layer: Callable[..., arrag.Layer], weight: float) -> Variants:
    """One layer, and steering that changes no token of it."""
    return {
        "one layer": [layer(weight)],
        "two layers with masks, a half each": [
            layer(weight, region=HALF),
            layer(weight, region=HALF[:, ::-1]),
        ],
        "a schedule": [layer(weight, curve="rows", rows=[1, 1 - 1e-6])],
        "a largest distance": [layer(weight, max_distance=FREE)],
        "a copy limit that is never reached": [layer(weight, copy_limit=10_000)],
    }


def measure_layers(seeds: int, record: Callable[[str, Any], None]) -> None:
    """CPU seconds of each variant, by seed."""
    model, index = arrag.load_model("pocket"), arrag.load_index("pocket")
    for group, make in (("one subject", subject_variants), ("whole index", whole_variants)):
        same, others = make(index)
        variants = same | others
        rows: dict[str, Any] = {name: {"seconds": [], "passes": []} for name in variants}
        for seed in range(-1, seeds):  # the first one warms up
            drawn: dict[str, arrag.Drawing] = {}
            for name in shuffled(variants, seed):
                seconds, drawn[name] = timed(model, variants[name], max(seed, 0))
                if seed >= 0:
                    rows[name]["seconds"].append(round(seconds, 4))
                    rows[name]["passes"].append(drawn[name].passes)
            check_same({name: drawn[name] for name in same})
            record(group, rows)


def shuffled(names: Iterable[str], seed: int) -> list[str]:
    """In another order for every seed: what was drawn before has an effect on the time."""
    listed = list(names)
    return [listed[i] for i in np.random.default_rng(seed + 1).permutation(len(listed))]


def check_same(drawn: dict[str, arrag.Drawing]) -> None:
    """Refuse variants that draw another picture than the first."""
    first = next(iter(drawn.values())).tokens
    for name, drawing in drawn.items():
        if not torch.equal(drawing.tokens, first):
            raise SystemExit(f"{name} draws another picture")


def timed(
    model: arrag.Checkpoint, layers: Sequence[arrag.Layer], seed: int
) -> tuple[float, arrag.Drawing]:
    """(CPU seconds, what was drawn) of one picture."""
    start = time.process_time()
    drawing = arrag.draw(model, PROMPT, [seed], layers)
    return time.process_time() - start, drawing


def serve() -> None:
    """Draw what each line asks for, and print the CPU seconds; for a process of its own. Uses
    only what other commits have too."""
    model, index = arrag.load_model("pocket"), arrag.load_index("pocket")
    for seed, line in enumerate(sys.stdin):
        weight = float(line)
        only = "flamingo" if weight == 1 else ""
        layers = [arrag.Layer(index, only=only, weight=weight)]
        print(timed(model, layers, seed)[0], flush=True)


def measure_unused(against: Path, seeds: int, record: Callable[[str, Any], None]) -> None:
    """The same drawings by this checkout and by another, in turn."""
    here = Path(__file__).resolve()
    servers = {"here": start_server(here.parents[1], here), "there": start_server(against, here)}
    rows: dict[str, Any] = {name: {"here": [], "there": []} for name in COMMANDS}
    for seed in range(-1, seeds):
        for name, command in COMMANDS.items():
            for side in shuffled(servers, seed):
                seconds = ask(servers[side], command)
                if seed >= 0:
                    rows[name][side].append(round(seconds, 4))
        record("unused", rows)
    for server in servers.values():
        server.terminate()


def start_server(checkout: Path, script: Path) -> subprocess.Popen[str]:
    """This script, running the engine of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    return subprocess.Popen(
        [sys.executable, "-P", str(script), "serve"],
        cwd=checkout,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(server: subprocess.Popen[str], command: str) -> float:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(command + "\n")
    server.stdin.flush()
    return float(server.stdout.readline())


def large_index(pictures: int, rng: np.random.Generator) -> PatchIndex:
    """An exact index of pictures of the shipped one, each with other noise."""
    index = arrag.load_index("pocket")
    assert index.vectors is not None
    chosen = rng.integers(0, len(index.tokens), pictures)
    vectors = index.vectors[chosen]
    vectors = vectors + rng.normal(0, NOISE, vectors.shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    sources = SourceTable.unknown(pictures)
    tokens = index.tokens[chosen]
    return create_index(
        index.grid, tokens, vectors, index.codebook, sources, index.spec, structure="flat"
    )


def measure_filter(pictures: int, record: Callable[[str, Any], None]) -> None:
    """CPU seconds of a look-up by share of the pictures, and of the first one, which prepares."""
    rng = np.random.default_rng(0)
    index = large_index(pictures, rng)
    views = {"1": index}
    for share in SHARES:
        images = rng.choice(pictures, max(1, round(share * pictures)), replace=False)
        views[f"{share:g}"] = index.restricted(images)
    queries = index.searcher.reconstruct(rng.integers(0, index.size, QUERIES)) + NOISE
    rows = {name: {"first": looked_up(view, queries[:1])} for name, view in views.items()}
    taken: dict[str, list[float]] = {name: [] for name in views}
    for query in np.repeat(queries, ROUNDS, axis=0):
        for name, view in views.items():
            taken[name].append(looked_up(view, query[None]))
    record("filter", {name: row | {"seconds": taken[name]} for name, row in rows.items()})


def looked_up(index: PatchIndex, queries: np.ndarray) -> float:
    start = time.process_time()
    index.lookup(queries, NEIGHBOURS)
    return round(time.process_time() - start, 5)


def filter_table(rows: dict[str, Any]) -> str:
    lines = ["| share of the pictures | a look-up | ratio | the first |", "|---|---|---|---|"]
    for name, row in rows.items():
        ratio = paired(row["seconds"], rows["1"]["seconds"])
        middle = statistics.median(row["seconds"])
        lines.append(f"| {name} | {1000 * middle:.1f} ms | {ratio} | {row['first']:.2f} s |")
    return "\n".join(lines)


def layers_table(rows: dict[str, Any]) -> str:
    """Median (range), and the median of the ratios to the first variant."""
    lines = ["| | CPU time | ratio | passes |", "|---|---|---|---|"]
    first = next(iter(rows.values()))["seconds"]
    for name, row in rows.items():
        ratio = paired(row["seconds"], first)
        passes = statistics.median(row["passes"])
        lines.append(f"| {name} | {spread(row['seconds'])} | {ratio} | {passes:g} |")
    return "\n".join(lines)


def unused_table(rows: dict[str, Any]) -> str:
    lines = ["| | this checkout | the other | ratio |", "|---|---|---|---|"]
    for name, row in rows.items():
        here, there = row["here"], row["there"]
        lines.append(f"| {name} | {spread(here)} | {spread(there)} | {paired(here, there)} |")
    return "\n".join(lines)


def spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f}-{max(seconds):.2f})"


def paired(seconds: Sequence[float], first: Sequence[float]) -> str:
    """Median ratio of pairs, with quartiles."""
    low, middle, high = np.quantile(np.divide(seconds, first), (0.25, 0.5, 0.75))
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("layers", "unused", "filter", "serve"))
    parser.add_argument("--seeds", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=6945, help="of the index of filter")
    parser.add_argument("--against", type=Path, help="a checkout of another commit, for unused")
    parser.add_argument("--out", type=Path, default=Path("docs/measured/steering-speed.json"))
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.what == "serve":
        serve()
        return
    measured = json.loads(a.out.read_text(encoding="utf-8")) if a.out.exists() else {}

    def record(group: str, rows: Any) -> None:
        measured[group] = rows
        write_text(a.out, json.dumps(measured, indent=1) + "\n")

    if a.what == "layers":
        measure_layers(a.seeds, record)
    elif a.what == "filter":
        measure_filter(a.pictures, record)
    elif a.against is None:
        parser.error("unused needs --against")
    else:
        measure_unused(a.against, a.seeds, record)
    for group, rows in measured.items():
        table = {"unused": unused_table, "filter": filter_table}.get(group, layers_table)
        print(f"\n{group}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
