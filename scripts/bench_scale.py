"""Search at size: structures as built against faiss's own IVF-SQ8, and shards here and on Ray.

    python scripts/bench_scale.py [--patches 1000000] [--shards 2] [--cluster local] [--folder F]

The pictures are made up (see `made_up_pictures`). One core a process, one query at a time unless it
says otherwise; a time is the median over queries.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import faiss
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from arrag_engine.files import write_text
from arrag_engine.index import (
    KeySpec,
    PatchIndex,
    SourceTable,
    create_index,
    file_bytes,
    open_lookup,
    save_shards,
)
from arrag_engine.index.keys import Keys
from arrag_engine.index.search import build_searcher
from arrag_engine.index.search.compact import TableScanner
from arrag_engine.index.search.inverted import Inverted
from scripts.bench_index import exact_distances
from scripts.made_up_pictures import GRID, Corpus, make_corpus

K = 64
SPECS = {"ivf": KeySpec(), "compact": KeySpec(space="codebook")}
PROBES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
QUANTILE = 1e-3
TARGET = 0.95
ROUNDS = 5
Row = dict[str, Any]
Search = Callable[[np.ndarray], object]
Rows = Iterator[Row]


def milliseconds(search: Search, queries: np.ndarray, at_once: int) -> float:
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


def structures(corpus: Corpus) -> Rows:
    """Each structure as built, and faiss's IVF-SQ8 at the target and at the same recall, all of
    them asked in turn."""
    for kind, spec in SPECS.items():
        keys, queries = corpus.keys(spec, slice(None)), corpus.queries
        furthest = exact_distances(keys, queries)
        start = time.perf_counter()
        searcher = build_searcher(keys, kind)
        row = {
            "search": f"{kind}, as built: {searcher.choice}",
            "recall": recall(keys, queries, furthest, searcher.search(queries, K)[1]),
            "bytes": sum(array.nbytes for array in searcher.arrays().values()) / keys.size,
            "build_seconds": time.perf_counter() - start,
        }
        asked: list[tuple[Row, Search]] = [(row, lambda xq, s=searcher: s.search(xq, K))]
        centroids = searcher.arrays()["centroids"]
        for quantiles in (False, True):
            index = plain(keys, centroids, quantiles)
            asked += peers(keys, queries, furthest, index, (TARGET, row["recall"]))
        times = [[milliseconds(one, queries, 1) for _, one in asked] for _ in range(ROUNDS)]
        for (row, _), ms in zip(asked, np.median(times, axis=0), strict=True):
            yield row | {"ms": ms, "ms_to_first": ms / np.median(times, axis=0)[0]}
        if isinstance(scanner := getattr(searcher, "_scanner", None), TableScanner):
            yield ids_only(keys, searcher, scanner, queries)  # type: ignore[arg-type]


def ids_only(keys: Keys, searcher: Inverted, scanner: TableScanner, queries: np.ndarray) -> Row:
    """Scanning lists that hold numbers of patches alone, their codes read from the token grids."""
    image, slot = np.divmod(searcher.lists.ids.astype(np.int64), len(keys.active))
    places = (image * keys.tokens.shape[1] + keys.active[slot]).astype(np.uint32)
    tokens = np.ascontiguousarray(keys.tokens).ravel()
    steps = (keys.neighbors[0] - keys.active[0]).tolist()
    probes = [searcher._probes(query, K) for query in queries]

    def codes(spans: list[tuple[int, int]]) -> np.ndarray:
        held = np.concatenate([scanner.codes[first:last] for first, last in spans])
        return held.T.astype(np.intp, order="C")

    def looked_up(spans: list[tuple[int, int]]) -> np.ndarray:
        held = np.concatenate([places[first:last] for first, last in spans]).astype(np.intp)
        return np.stack([tokens.take(held + step) for step in steps]).astype(np.intp)

    def taken(columns: Callable[[list[tuple[int, int]]], np.ndarray], row: int) -> float:
        tables = scanner._tables(queries[row])
        start = time.perf_counter()
        for spans in scanner._runs(probes[row]):
            sum(table.take(c) for table, c in zip(tables, columns(spans), strict=True))
        return time.perf_counter() - start

    for spans in scanner._runs(probes[0]):
        assert np.array_equal(codes(spans), looked_up(spans))
    times = [[taken(one, row) for one in (codes, looked_up)] for row in range(len(queries))]
    held, ids = np.median(times, axis=0) * 1e3
    return {"search": "compact, scan alone", "codes_ms": held, "ids_only_ms": ids}


def peers(
    keys: Keys,
    queries: np.ndarray,
    furthest: np.ndarray,
    index: faiss.IndexIVFScalarQuantizer,
    wanted: Sequence[float],
) -> list[tuple[Row, Search]]:
    """The index with the smallest nprobe of some that has each recall, or with the largest."""
    name = "extremes" if index.sq.rangestat == faiss.ScalarQuantizer.RS_minmax else "quantiles"

    def search(nprobe: int, xq: np.ndarray) -> np.ndarray:
        index.nprobe = nprobe
        return index.search(xq, K)[1]

    shares = {nprobe: recall(keys, queries, furthest, search(nprobe, queries)) for nprobe in PROBES}
    chosen = []
    for least in wanted:
        nprobe = next((n for n in PROBES if shares[n] >= least), PROBES[-1])
        row = {"search": f"faiss IVF-SQ8, {name}, nprobe {nprobe}", "recall": shares[nprobe]}
        chosen.append((row | {"wanted": least}, partial(search, nprobe)))
    return chosen


def cut(corpus: Corpus, shards: int) -> Iterator[PatchIndex]:
    """`compact` indexes of the pictures, one after the other."""
    for tokens in np.array_split(corpus.tokens, shards):
        sources = SourceTable.unknown(len(tokens))
        codebook, spec = corpus.codebook, SPECS["compact"]
        yield create_index(GRID, tokens, None, codebook, sources, spec, "compact")


def sharded(corpus: Corpus, shards: int, address: str, folder: Path) -> Rows:
    path = folder / "shards.json"
    save_shards(path, cut(corpus, shards))
    here = open_lookup(path)
    there = open_lookup(path, address)
    first = there.lookup(corpus.queries[:32], K)
    for one, other in zip(first.fields, here.lookup(corpus.queries[:32], K).fields, strict=True):
        assert np.array_equal(one, other)
    for at_once in (1, 32):
        times = [
            [milliseconds(lambda xq, s=s: s.lookup(xq, K), corpus.queries, at_once) for s in both]
            for both in [(here, there)] * ROUNDS
        ]
        one, other = np.median(times, axis=0)
        yield {"queries": at_once, "shards": shards, "here_ms": one, "ray_ms": other}
    yield {"bytes_a_patch": file_bytes(path) / here.size}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--patches", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--codes", type=int, default=16384)
    parser.add_argument("--shards", type=int, default=0, help="0 = no shards")
    parser.add_argument("--cluster", default="local", help="address of the Ray cluster")
    parser.add_argument("--folder", type=Path, help="for the files, which stay")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    a = parser.parse_args()
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        corpus = make_corpus(a.patches, a.queries, a.codes, folder)
        if a.shards:
            corpus = replace(corpus, tokens=np.ascontiguousarray(corpus.tokens))
            rows = sharded(corpus, a.shards, a.cluster, folder)
        else:
            rows = structures(corpus)
        facts = []
        for row in rows:
            print(json.dumps(row), flush=True)
            facts.append(row)
    if a.out:
        write_text(a.out, json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
