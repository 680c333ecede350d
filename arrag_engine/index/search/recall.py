"""The recall of a structure: the share of exact neighbours found for queries like a drawing's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..keys import Keys
from .flat import among
from .searcher import Searcher

NEIGHBORS = 64
QUERIES = 256


@dataclass(frozen=True)
class Trial:
    """Queries made of tokens of some pictures of the index, answered without those pictures.

    A picture that is being drawn is not in the index either.
    """

    queries: np.ndarray
    """[Q, dim] float32."""
    images: np.ndarray
    """Pictures [n] they come from."""
    furthest: np.ndarray
    """[Q]: squared distance of the last neighbour that exact search finds."""
    k: int
    """Neighbours a query has: 64, or all patches of a smaller index."""


def make_trial(keys: Keys, seed: int = 0) -> Trial:
    """A trial of up to 256 queries, from at most a tenth of the pictures."""
    rng = np.random.default_rng(seed)
    count = max(1, min(QUERIES, len(keys.tokens) // 10))
    images = np.sort(rng.choice(len(keys.tokens), count, replace=False))
    active = len(keys.active)
    ids = (images[:, None] * active + np.arange(active)).ravel()
    ids = rng.choice(ids, min(QUERIES, len(ids)), replace=False)
    drawn = replace(keys.spec, space="codebook")
    queries = Keys(keys.tokens, None, keys.codebook, keys.grid, drawn).rows(ids)
    if len(keys.tokens) == 1:
        images = images[:0]
    k = min(NEIGHBORS, keys.size - len(images) * active)
    return Trial(queries, images, _furthest(keys, queries, images, k), k)


def _furthest(keys: Keys, queries: np.ndarray, images: np.ndarray, k: int) -> np.ndarray:
    """Squared distance [Q] of the k-th nearest key, without the keys of these pictures."""
    import faiss

    nearest = np.full((len(queries), k), np.inf, np.float32)
    for first, chunk in keys.chunks():
        ids = np.arange(first, first + len(chunk))
        chunk = chunk[~among(ids, len(keys.active), images)]
        if len(chunk):
            distances, _ = faiss.knn(queries, chunk, min(k, len(chunk)))
            both = np.concatenate((nearest, distances), axis=1)
            nearest = np.partition(both, k - 1, axis=1)[:, :k]
    return nearest.max(axis=1)


def measure_recall(trial: Trial, searcher: Searcher, keys: Keys) -> np.ndarray:
    """Share [Q] of the nearest patches that the searcher finds for each query.

    A patch counts if it is as near as the last of the exact neighbours: equally near ones are
    interchangeable. Distances are those of the keys, not the rounded ones of the structure.
    """
    shares = np.empty(len(trial.queries))
    for row, query in enumerate(trial.queries):
        found = _elsewhere(trial, searcher, query, len(keys.active))
        distances = ((keys.rows(found) - query) ** 2).sum(axis=1)
        shares[row] = (distances <= trial.furthest[row] * (1 + 1e-5) + 1e-5).sum() / trial.k
    return shares


def _elsewhere(trial: Trial, searcher: Searcher, query: np.ndarray, per_image: int) -> np.ndarray:
    """The nearest k patches found outside the trial's pictures, which may fill the first places."""
    asked = 2 * trial.k
    while True:
        found = searcher.search(query[None], asked)[1][0]
        found = found[found >= 0]
        kept = found[~among(found, per_image, trial.images)]
        if len(kept) >= trial.k or len(found) < asked:
            return kept[: trial.k]
        asked *= 2
