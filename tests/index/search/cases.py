"""Keys of random pictures, and what search by brute force finds among them."""

import numpy as np

from arrag_engine.grid import Grid
from arrag_engine.index.keys import Keys, KeySpec
from arrag_engine.index.search import build_searcher

GRID = Grid(5, 6)
SPECS = [
    KeySpec(),
    KeySpec(space="codebook"),
    KeySpec("causal-4", "zero", "codebook", 0.5),
    KeySpec("ring-8", "zero", "encoder", 2.0),
]
BUILDS = [
    (spec, kind)
    for spec in SPECS
    for kind in ("flat", "ivf", "compact")
    if kind != "compact" or spec.space == "codebook"
]


def make_keys(spec=SPECS[1], images=12, grid=GRID, codes=40, seed=0, code_dim=8, signs=False):
    """Few codes make many equal keys in the codebook key space.

    Args:
        signs: Code vectors consist of 1 and -1.
    """
    rng = np.random.default_rng(seed)
    codebook = unit(rng.normal(size=(codes, code_dim)))
    codebook = np.sign(codebook) if signs else codebook
    tokens = rng.integers(0, codes, (images, grid.size)).astype(np.uint16)
    vectors = unit(codebook[tokens] + rng.normal(0, 0.1, (images, grid.size, code_dim)))
    return Keys(tokens, vectors, codebook, grid, spec)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def all_keys(keys):
    return np.concatenate([chunk for _, chunk in keys.chunks()])


def make_queries(keys, count=7, seed=1):
    """Somewhere near keys; the first is one."""
    rng = np.random.default_rng(seed)
    rows = all_keys(keys)[rng.integers(0, keys.size, count)]
    noise = rng.normal(0, 0.1, rows.shape)
    noise[0] = 0
    return (rows + noise).astype(np.float32)


def make_searcher(keys, kind, nprobe=None):
    """A structure that scans `nprobe` lists, all of them if None."""
    searcher = build_searcher(keys, kind, recall_target=0.5)
    if kind != "flat":
        searcher.nprobe = nprobe or len(searcher.centroids)
    return searcher


def squared_distances(queries, rows):
    """[B, n] in double precision."""
    differences = queries[:, None].astype(np.float64) - rows
    return (differences**2).sum(axis=-1)
