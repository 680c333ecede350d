"""Search structures at size: bytes a patch, recall, time of a query, loading, memory.

    python scripts/bench_index.py [--patches 10000000] [--structures ivf compact] [--folder FOLDER]

The pictures are made up, with 16384 codes on a 24x24 grid like Janus-Pro's: see
`made_up_pictures`. One core, one query at a time; a time is the median over queries of the median
over rounds. Memory is anonymous memory of a fresh process. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import faiss
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from arrag_engine.index import KeySpec, PatchIndex, Source, create_index, load_index, save_index
from arrag_engine.index.container import TensorFile
from arrag_engine.index.keys import Keys
from scripts.made_up_pictures import GRID, Corpus, make_corpus

K = 64
SPECS = {
    "flat": KeySpec(space="encoder"),
    "ivf": KeySpec(space="encoder"),
    "compact": KeySpec(space="codebook"),
}
ROUNDS = 5
SHARES = (0.01, 0.1, 0.5, 0.9)
ALL = slice(None)


def exact_distances(keys: Keys, queries: np.ndarray) -> np.ndarray:
    """Squared distance [Q] of the K-th nearest key."""
    nearest = np.full((len(queries), K), np.inf, np.float32)
    for _, chunk in keys.chunks():
        both = np.concatenate((nearest, faiss.knn(queries, chunk, min(K, len(chunk)))[0]), axis=1)
        nearest = np.partition(both, K - 1, axis=1)[:, :K]
    return nearest[:, -1]


def build(corpus: Corpus, structure: str, path: Path) -> dict:
    """Write an index of this structure; what it took, and what its file is made of."""
    count = len(corpus.tokens)
    sources = (
        Source(
            f"pictures/{i:08d}.jpg", f"made-up picture number {i}", 384, 384, f"{i:064x}", "", b""
        )
        for i in range(count)
    )
    start = time.process_time()
    with tqdm(desc=f"building {structure}", unit="patch", unit_scale=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        index = create_index(
            GRID, corpus.tokens, corpus.vectors, corpus.codebook, sources, SPECS[structure],
            structure, progress=progress,
        )  # fmt: skip
    seconds = time.process_time() - start
    save_index(index, path)
    file = TensorFile(path)
    tensors = {name: file.tensor(name) for name in file.names}
    parts = {name: tensor.nbytes / index.size for name, tensor in tensors.items()}
    lists = len(tensors["search.centroids"]) if "search.centroids" in tensors else 1
    return {
        "patches": index.size,
        "bytes": path.stat().st_size / index.size,
        "parts": {name: size for name, size in parts.items() if size >= 0.005},
        "build_seconds": seconds,
        "lists": lists,
    } | {f"built_{name}": value for name, value in index.searcher.settings.items()}


class Memory(threading.Thread):
    """Watches the highest anonymous memory of this process, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.peak = self.now()
        self.start()

    @staticmethod
    def now() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, self.now())
            time.sleep(0.005)

    def grown(self) -> int:
        """Bytes that were added at the highest."""
        return max(self.peak, self.now()) - self.before


def milliseconds(indexes: list[PatchIndex], queries: np.ndarray) -> list[float]:
    """Time of a query to each of the indexes, asked in turn."""
    taken = np.empty((ROUNDS, len(indexes), len(queries)))
    for turn in taken:
        for row, index in zip(turn, indexes, strict=True):
            for i in range(len(queries)):
                start = time.perf_counter()
                index.lookup(queries[i : i + 1], K)
                row[i] = time.perf_counter() - start
    return (np.median(np.median(taken, axis=0), axis=1) * 1e3).tolist()


def seconds_to_first(view: PatchIndex, queries: np.ndarray) -> float:
    """Time until a view that was not searched before has answered."""
    start = time.perf_counter()
    view.lookup(queries[:1], K)
    return time.perf_counter() - start


def subsets(count: int) -> list[np.ndarray]:
    """Pictures of each share of all."""
    rng = np.random.default_rng(2)
    return [rng.choice(count, max(1, round(share * count)), replace=False) for share in SHARES]


def measure(path: Path, queries: np.ndarray) -> dict:
    """Loading, memory, what is found and how fast; for a process of its own."""
    faiss.omp_set_num_threads(1)
    memory, start = Memory(), time.perf_counter()
    index = load_index(path)
    index.lookup(queries[:1], K)
    facts = {
        "load_seconds": time.perf_counter() - start,
        "memory": memory.grown() / path.stat().st_size,
    }
    views = [index, *(index.restricted(images) for images in subsets(len(index.tokens)))]
    prepared = [seconds_to_first(view, queries) for view in views[1:]]
    times = milliseconds(views, queries)
    facts |= {"ms": times[0], "restricted": [t / times[0] for t in times[1:]]}
    facts["prepare_seconds"] = prepared
    facts["ids"] = [view.numbers(view.lookup(queries, K)).tolist() for view in views]
    if index.searcher.kind != "flat":
        nprobe = index.searcher.nprobe  # type: ignore[attr-defined]
        index.searcher.nprobe = min(4 * nprobe, len(index.searcher.centroids))  # type: ignore[attr-defined]
        more = milliseconds([index], queries)[0]
        extra = index.searcher.nprobe - nprobe  # type: ignore[attr-defined]
        facts["ms_a_list"] = (more - times[0]) / max(extra, 1)
    return facts


def recall(corpus: Corpus, structure: str, images: np.ndarray | slice, ids: list) -> float:
    """Share of the K nearest patches of these pictures that are among `ids` [Q, K]."""
    furthest = exact_distances(corpus.keys(SPECS[structure], images), corpus.queries)
    found = corpus.keys(SPECS[structure], ALL).rows(np.array(ids))  # [Q, K, dim]
    distances = ((found - corpus.queries[:, None]) ** 2).sum(axis=-1)
    return float((distances <= furthest[:, None] * (1 + 1e-5) + 1e-5).mean())


def bench(corpus: Corpus, structure: str, folder: Path) -> dict:
    path = folder / f"{structure}.safetensors"
    facts = build(corpus, structure, path)
    np.save(folder / "queries.npy", corpus.queries)
    command = [sys.executable, __file__, "--measure", str(path), str(folder / "queries.npy")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    facts |= json.loads(done.stdout)
    whole, *parts = facts.pop("ids")
    facts["recall"] = recall(corpus, structure, ALL, whole)
    facts["restricted_recall"] = [
        recall(corpus, structure, images, ids)
        for images, ids in zip(subsets(len(corpus.tokens)), parts, strict=True)
    ]
    return facts


def table(results: dict[str, dict], encoder_seconds: float) -> str:
    """The measured numbers, a column for each structure."""
    per_image = len(KeySpec().active(GRID))

    def many(values: list[float]) -> str:
        return ", ".join(f"{value:.2f}" for value in values)

    def parts(facts: dict) -> str:
        return ", ".join(f"{name} {size:.2f}" for name, size in facts["parts"].items())

    rows = {
        "patches": lambda f: f"{f['patches']:,}",
        "bytes a patch, file": lambda f: f"{f['bytes']:.2f}",
        "  of which": parts,
        "lists, nprobe": lambda f: f"{f['lists']}, {f.get('built_nprobe', '-')}",
        f"recall at {K}, queries held out": lambda f: f"{f['recall']:.4f}",
        "recall measured at build": lambda f: f["built_recall"],
        "ms a query": lambda f: f"{f['ms']:.3f}",
        f"time, restricted to {SHARES} of pictures": lambda f: many(f["restricted"]),
        "  recall": lambda f: many(f["restricted_recall"]),
        "  s to the first answer, once": lambda f: many(f["prepare_seconds"]),
        "load, to the first answer, s": lambda f: f"{f['load_seconds']:.2f}",
        "anonymous memory, of the file": lambda f: f"{f['memory']:.2f}",
        "build, CPU s": lambda f: f"{f['build_seconds']:.0f}",
        "  of the encoder's time": lambda f: (
            f"{f['build_seconds'] / (f['patches'] / per_image * encoder_seconds):.1%}"
        ),
    }
    lines = []
    for name, show in rows.items():
        cells = (f"{s}: {show(f)}" for s, f in results.items())
        lines.append(f"{name:<48} " + " | ".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--patches", type=int, default=10_000_000)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--codes", type=int, default=16384)
    parser.add_argument("--structures", nargs="+", choices=SPECS, default=["ivf", "compact"])
    parser.add_argument("--encoder-seconds", type=float, default=1.0, help="per picture, CPU")
    parser.add_argument(
        "--folder", type=Path, help="for the files, which stay; else a temporary one"
    )
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        print(json.dumps(measure(a.measure[0], np.load(a.measure[1]))))
        return
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        corpus = make_corpus(a.patches, a.queries, a.codes, folder)
        results = {s: bench(corpus, s, folder) for s in a.structures}
    print(table(results, a.encoder_seconds))


if __name__ == "__main__":
    main()
