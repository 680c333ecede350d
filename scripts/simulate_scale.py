"""How an index grows: `compact` indexes of 1 to 20 million patches, measured.

    python scripts/simulate_scale.py --folder FOLDER [--millions 1 2 5 10 20] [--out FILE.json]

The pictures are made up (see `made_up_pictures`). Two kinds of indexes are measured: `as built`,
and `long`, whose lists are as long as those of a shard with the most lists that there are. Each is
measured by a process of its own, on one core, one query at a time; indexes that are in the folder
already are measured again and not built again. `plot_scale` goes on from there. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import faiss
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from arrag_engine.files import write_text
from arrag_engine.index import container, load_index
from arrag_engine.index.search.lists import MAX_LISTS
from scripts.bench_index import K, Memory, build, milliseconds, recall
from scripts.made_up_pictures import Corpus, make_corpus

LONG = round((MAX_LISTS / 3) ** 2 / MAX_LISTS)
"""Patches of a list where the number of lists, 3 sqrt(n), comes to the most."""
PER_PICTURE = 506
"""Patches of a picture."""
ROUNDS = 5
"""All are measured so many times, one after the other; the time is the median."""
FEWEST = 64
"""Long lists of an index, at the least."""
LIST_COUNT = "arrag_engine.index.search.choose.list_count"
QUERIES, CODEBOOK = "queries.npy", "codebook.npy"


def measure(path: Path, queries: np.ndarray) -> dict[str, float]:
    """What one index takes; for a process of its own. Arrays stay in the file, as those of more
    than 256 MB do."""
    faiss.omp_set_num_threads(1)
    container.IN_MEMORY = 2**20
    memory, start = Memory(), time.perf_counter()
    index = load_index(path)
    index.lookup(queries[:1], K)
    seconds = time.perf_counter() - start
    [ms] = milliseconds([index], queries)
    searcher = index.searcher
    scanned = [searcher.lists.sizes[searcher._probes(query, K)].sum() for query in queries]  # type: ignore[attr-defined]
    return {
        "patches": index.size,
        "lists": len(searcher.centroids),  # type: ignore[attr-defined]
        "nprobe": searcher.nprobe,  # type: ignore[attr-defined]
        "scanned": float(np.mean(scanned)),
        "ms": ms,
        "bytes": path.stat().st_size,
        "memory": memory.grown(),
        "load_seconds": seconds,
    }


def grow(corpus: Corpus, millions: float, lists: int, folder: Path) -> dict[str, float]:
    """The facts of an index of so many patches, built if it is not there.

    Args:
        lists: Its lists; 0 = as built.
    """
    name = f"compact-{millions:g}{'-long' if lists else ''}"
    path, kept = folder / f"{name}.safetensors", folder / f"{name}.json"
    part = replace(corpus, tokens=corpus.tokens[: round(millions * 1e6 / PER_PICTURE)])
    if not kept.exists():
        print(f"building {name}", file=sys.stderr, flush=True)
        with patch(LIST_COUNT, lambda size: lists) if lists else nullcontext():
            facts = build(part, "compact", path)
        index = load_index(path)
        ids = index.numbers(index.lookup(corpus.queries, K)).tolist()
        facts = {
            "build_seconds": facts["build_seconds"],
            "recall": recall(part, "compact", slice(None), ids),
        }
        kept.write_text(json.dumps(facts))
    command = [sys.executable, __file__, "--measure", str(path), str(folder / QUERIES)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout) | json.loads(kept.read_text())


def made(millions: float, count: int, codes: int, folder: Path) -> Corpus:
    """The corpus in a folder, made if it is not there."""
    if not (folder / QUERIES).exists():
        corpus = make_corpus(round(millions * 1e6), count, codes, folder, encoder=False)
        np.save(folder / CODEBOOK, corpus.codebook)
        np.save(folder / QUERIES, corpus.queries)
    tokens = np.load(folder / "tokens.npy", mmap_mode="r")
    return Corpus(tokens, None, np.load(folder / CODEBOOK), np.load(folder / QUERIES))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 2, 5, 10, 20])
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--codes", type=int, default=16384)
    parser.add_argument("--folder", type=Path, help="for the files, which stay")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        print(json.dumps(measure(a.measure[0], np.load(a.measure[1]))))
        return
    a.folder.mkdir(parents=True, exist_ok=True)
    corpus = made(max(a.millions), a.queries, a.codes, a.folder)
    kinds = {
        "as built": [(millions, 0) for millions in a.millions],
        "long": [
            (millions, round(millions * 1e6 / LONG))
            for millions in a.millions
            if millions * 1e6 > FEWEST * LONG
        ],
    }
    rounds = [
        {kind: [grow(corpus, m, n, a.folder) for m, n in sizes] for kind, sizes in kinds.items()}
        for _ in range(ROUNDS)
    ]
    grown = rounds[0]
    for kind, rows in grown.items():
        for i, row in enumerate(rows):
            row["ms"] = float(np.median([one[kind][i]["ms"] for one in rounds]))
    text = json.dumps(grown, indent=1)
    print(text)
    if a.out:
        write_text(a.out, text + "\n")


if __name__ == "__main__":
    main()
