"""Search at size: structures as built against faiss's own IVF-SQ8, and shards here and on Ray.

    python scripts/bench_scale.py [--patches 1000000] [--shards 2] [--cluster local] [--folder F]

The pictures are made up (see `made_up_pictures`). One core a process, one query at a time unless it
says otherwise; a time is the median over queries.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import faiss
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from arrag_engine.index import (
    KeySpec,
    PatchIndex,
    SourceTable,
    create_index,
    open_lookup,
    read_manifest,
    save_shards,
)
from arrag_engine.index.keys import Keys
from arrag_engine.index.search import build_searcher
from scripts.bench_index import exact_distances
from scripts.made_up_pictures import GRID, Corpus, make_corpus

K = 64
SPECS = {"ivf": KeySpec(), "compact": KeySpec(space="codebook")}
PROBES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
QUANTILE = 1e-3


def milliseconds(
    search: Callable[[np.ndarray], object], queries: np.ndarray, at_once: int
) -> float:
    """Median time of a call with so many queries."""
    taken = []
    for first in range(0, len(queries) - at_once + 1, at_once):
        start = time.perf_counter()
        search(queries[first : first + at_once])
        taken.append(time.perf_counter() - start)
    return float(np.median(taken)) * 1e3


def recall(keys: Keys, queries: np.ndarray, furthest: np.ndarray, ids: np.ndarray) -> float:
    distances = ((keys.rows(np.maximum(ids, 0)) - queries[:, None]) ** 2).sum(axis=-1)
    near = distances <= furthest[:, None] * (1 + 1e-5) + 1e-5
    return float((near & (ids >= 0)).mean())


def plain(keys: Keys, centroids: np.ndarray, quantiles: bool) -> faiss.IndexIVFScalarQuantizer:
    """faiss's IVF-SQ8 with the same lists, its ranges from the extremes or from quantiles."""
    coarse = faiss.IndexFlatL2(keys.dim)
    coarse.add(centroids)
    index = faiss.IndexIVFScalarQuantizer(
        coarse, keys.dim, len(centroids), faiss.ScalarQuantizer.QT_8bit
    )
    if quantiles:
        index.sq.rangestat = faiss.ScalarQuantizer.RS_quantiles
        index.sq.rangestat_arg = QUANTILE
    rows = np.concatenate([chunk for _, chunk in keys.chunks()])
    index.train(rows)
    index.add(rows)
    return index


def structures(corpus: Corpus) -> None:
    for kind, spec in SPECS.items():
        keys, queries = corpus.keys(spec, slice(None)), corpus.queries
        furthest = exact_distances(keys, queries)
        start = time.perf_counter()
        searcher = build_searcher(keys, kind)
        seconds = time.perf_counter() - start
        wanted = recall(keys, queries, furthest, searcher.search(queries, K)[1])
        size = sum(array.nbytes for array in searcher.arrays().values()) / keys.size
        ms = milliseconds(lambda xq, s=searcher: s.search(xq, K), queries, 1)
        print(f"{kind}: {searcher.choice}")
        print(f"  {size:.1f} B a patch, recall {wanted:.4f}, {ms:.3f} ms, built in {seconds:.0f} s")
        centroids = searcher.arrays()["centroids"]
        for quantiles in (False, True):
            report_plain(keys, queries, furthest, plain(keys, centroids, quantiles), wanted)


def report_plain(
    keys: Keys,
    queries: np.ndarray,
    furthest: np.ndarray,
    index: faiss.IndexIVFScalarQuantizer,
    wanted: float,
) -> None:
    """The smallest nprobe with a recall, or the best one."""
    name = "extremes" if index.sq.rangestat == faiss.ScalarQuantizer.RS_minmax else "quantiles"
    found = 0.0
    for nprobe in PROBES:
        index.nprobe = nprobe
        found = recall(keys, queries, furthest, index.search(queries, K)[1])
        if found >= wanted:
            break
    ms = milliseconds(lambda xq: index.search(xq, K), queries, 1)
    print(f"  faiss IVF-SQ8, {name}: nprobe {index.nprobe}, recall {found:.4f}, {ms:.3f} ms")


def cut(corpus: Corpus, shards: int) -> Iterator[PatchIndex]:
    """`compact` indexes of the pictures, one after the other."""
    for tokens in np.array_split(corpus.tokens, shards):
        sources = SourceTable.unknown(len(tokens))
        codebook, spec = corpus.codebook, SPECS["compact"]
        yield create_index(GRID, tokens, None, codebook, sources, spec, "compact")


def sharded(corpus: Corpus, shards: int, address: str, folder: Path) -> None:
    path = folder / "shards.json"
    save_shards(path, cut(corpus, shards))
    files = [read_manifest(path).place(shard) for shard in read_manifest(path).shards]
    size = sum(file.stat().st_size for file in files) / (len(corpus.tokens) * 506)
    print(f"{shards} shards of compact: {size:.1f} B a patch in files")
    here = open_lookup(path)
    there = open_lookup(path, address)
    first = there.lookup(corpus.queries[:32], K)
    for one, other in zip(first.fields, here.lookup(corpus.queries[:32], K).fields, strict=True):
        assert np.array_equal(one, other)
    for at_once in (1, 32):
        times = [
            milliseconds(lambda xq, s=source: s.lookup(xq, K), corpus.queries, at_once)
            for source in (here, there)
        ]
        print(f"  {at_once} queries a call: {times[0]:.2f} ms here, {times[1]:.2f} ms on Ray")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--patches", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--codes", type=int, default=16384)
    parser.add_argument("--shards", type=int, default=0, help="0 = no shards")
    parser.add_argument("--cluster", default="local", help="address of the Ray cluster")
    parser.add_argument("--folder", type=Path, help="for the files, which stay")
    a = parser.parse_args()
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        corpus = make_corpus(a.patches, a.queries, a.codes, folder)
        if a.shards:
            corpus = replace(corpus, tokens=np.ascontiguousarray(corpus.tokens))
            sharded(corpus, a.shards, a.cluster, folder)
        else:
            structures(corpus)


if __name__ == "__main__":
    main()
