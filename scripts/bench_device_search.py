"""Search of a patch index on a device against faiss on the host: time of a look-up, memory.

    python -m scripts.bench_device_search [--device cuda] [--patches 100000 1000000] [--out FILE]

The pictures are made up, with 16384 codes on a 24x24 grid like Janus-Pro's: see
`made_up_pictures`. Both are asked the same queries in turn; a time is the median over the look-ups
of all rounds, from queries on the host to hits on the host. Faiss and PyTorch use one thread unless
OMP_NUM_THREADS says otherwise. The first look-up, which copies the keys, is timed by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import faiss
import numpy as np
import torch

from arrag_engine.index import KEY_SPACES, Hits, KeySpec, PatchIndex, Source, create_index
from arrag_engine.retrieval import device_bytes, device_index
from scripts.made_up_pictures import GRID, Corpus, make_corpus


@dataclass(frozen=True)
class Row:
    """What was measured of one index and batch size."""

    patches: int
    space: str
    batch: int
    host_ms: float
    device_ms: float
    first_ms: float
    device_mb: float
    equal: bool
    """Whether all hits were equal, distances to the last bit."""


def make_index(corpus: Corpus, space: Literal["encoder", "codebook"]) -> PatchIndex:
    sources = (
        Source(f"{i:08d}.jpg", "", 384, 384, f"{i:064x}", "", b"")
        for i in range(len(corpus.tokens))
    )
    spec = KeySpec(space=space)
    vectors = corpus.vectors if space == "encoder" else None
    return create_index(GRID, corpus.tokens, vectors, corpus.codebook, sources, spec, "flat")


def timed(index: PatchIndex, queries: np.ndarray, k: int) -> tuple[float, Hits]:
    """Milliseconds of a look-up, and what it found."""
    start = time.perf_counter()
    hits = index.lookup(queries, k)
    return (time.perf_counter() - start) * 1e3, hits


def same(a: Hits, b: Hits) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a.fields, b.fields, strict=True))


def measure(index: PatchIndex, queries: np.ndarray, batch: int, a: argparse.Namespace) -> Row:
    """Both searches, asked `batch` queries at a time, in turn."""
    there = device_index(index, a.device)
    index.lookup(queries[:1], a.k)  # makes the faiss structure
    first = timed(there, queries[:batch], a.k)[0]
    host, device, equal = [], [], True
    for _ in range(a.rounds):
        for i in range(0, len(queries) - batch + 1, batch):
            (h, wanted), (d, found) = (
                timed(one, queries[i : i + batch], a.k) for one in (index, there)
            )
            host.append(h)
            device.append(d)
            equal = equal and same(found, wanted)
    medians = statistics.median(host), statistics.median(device)
    megabytes = device_bytes(index) / 1e6
    return Row(index.size, index.spec.space, batch, *medians, first, megabytes, equal)


def machine(device: str) -> dict[str, str | int]:
    """What the numbers were measured on."""
    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else "none"
    return {
        "device": device,
        "card": card,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "faiss": faiss.__version__,
        "numpy": np.__version__,
    }


def show(row: Row) -> str:
    cells = f"| {row.patches:,} | {row.space} | {row.batch} | {row.host_ms:.2f} |"
    cells += f" {row.device_ms:.2f} | {row.first_ms:.0f} | {row.device_mb:.0f} |"
    return f"{cells} {'yes' if row.equal else 'NO'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--patches", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--spaces", nargs="+", choices=KEY_SPACES, default=["codebook", "encoder"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--codes", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("bench_device_search.json"))
    a = parser.parse_args()
    faiss.omp_set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    result: dict = {"machine": machine(a.device), "k": a.k, "rows": []}
    print(result["machine"])
    print("| patches | keys | queries | faiss flat ms | device ms | first ms | device MB | equal |")
    print("|---|---|---|---|---|---|---|---|")
    for patches in a.patches:
        with tempfile.TemporaryDirectory() as folder:
            corpus = make_corpus(patches, a.queries, a.codes, Path(folder))
            for space in a.spaces:
                index = make_index(corpus, space)
                for batch in a.batches:
                    row = measure(index, corpus.queries, batch, a)
                    print(show(row), flush=True)
                    result["rows"].append(vars(row))
                    a.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
