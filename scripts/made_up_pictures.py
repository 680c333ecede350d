"""Made-up pictures with the statistics of real tokens, in any number.

Every token is drawn from those that followed the same northern and western neighbours in the
pictures of the shipped index, encoded with a codebook of the given size, then exchanged for
one of its nearest codes; the encoder's vector lies beside its code as some real one lay beside its
own. Queries come from pictures made the same way out of a tenth of the shipped pictures, which the
indexed ones never saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from arrag_engine import shipped
from arrag_engine.grid import Grid
from arrag_engine.index import KeySpec, load_index
from arrag_engine.index.keys import Keys

GRID = Grid(24, 24)
NEAR = 32
"""A token is exchanged for one of this many nearest codes, itself among them."""
FORGET = 0.1
"""How often a token looks at one neighbour only, which keeps whole pictures from being copied."""
HELD_OUT = 0.1


@dataclass(frozen=True)
class Corpus:
    """What indexes are made of, and what is asked."""

    tokens: np.ndarray
    vectors: np.ndarray | None
    codebook: np.ndarray
    queries: np.ndarray

    def keys(self, spec: KeySpec, images: np.ndarray | slice) -> Keys:
        vectors = None if self.vectors is None else self.vectors[images]
        return Keys(self.tokens[images], vectors, self.codebook, GRID, spec)


class Followers:
    """Which positions of some pictures followed a neighbourhood of coarse tokens."""

    def __init__(self, contexts: np.ndarray, positions: np.ndarray) -> None:
        order = np.argsort(contexts, kind="stable")
        self.contexts, self.positions = contexts[order], positions[order]

    def draw(self, contexts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One of the positions [n] for each context [n]; -1 where none followed."""
        first = np.searchsorted(self.contexts, contexts, "left")
        last = np.searchsorted(self.contexts, contexts, "right")
        chosen = first + (rng.random(len(contexts)) * (last - first)).astype(np.int64)
        chosen = np.minimum(chosen, len(self.positions) - 1)
        return np.where(last > first, self.positions[chosen], -1)


def draw_pictures(
    coarse: np.ndarray, allowed: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Positions [count, H, W] of real tokens, each fitting the ones to the north and the west.

    Args:
        coarse: Real tokens [images, h, w].
        allowed: The images to draw from.
    """
    places = np.arange(coarse.size).reshape(coarse.shape)[allowed]
    flat, codes = coarse.ravel().astype(np.int64), int(coarse.max()) + 1
    here, north, west = places[:, 1:, 1:], places[:, :-1, 1:], places[:, 1:, :-1]
    after_both = Followers((flat[north] * codes + flat[west]).ravel(), here.ravel())
    after_north = Followers(flat[places[:, :-1]].ravel(), places[:, 1:].ravel())
    after_west = Followers(flat[places[:, :, :-1]].ravel(), places[:, :, 1:].ravel())
    drawn = np.empty((count, GRID.height, GRID.width), np.int64)
    for row, column in np.ndindex(GRID.height, GRID.width):
        token = np.full(count, -1)
        if row and column:
            above, left = flat[drawn[:, row - 1, column]], flat[drawn[:, row, column - 1]]
            token = after_both.draw(above * codes + left, rng)
            token[rng.random(count) < FORGET] = -1
        if column:
            left = after_west.draw(flat[drawn[:, row, column - 1]], rng)
            token = np.where(token < 0, left, token)
        if row:
            above = after_north.draw(flat[drawn[:, row - 1, column]], rng)
            token = np.where(token < 0, above, token)
        anything = rng.choice(places.ravel(), count)
        drawn[:, row, column] = np.where(token < 0, anything, token)
    return drawn.reshape(count, -1)


def make_corpus(
    patches: int, queries: int, codes: int, folder: Path, encoder: bool = True
) -> Corpus:
    """A corpus of at least so many patches, mapped from files in `folder`.

    Args:
        encoder: Make the encoder's vectors, too.
    """
    pocket = load_index(shipped.resolve("pocket", shipped.INDEXES))
    assert pocket.vectors is not None
    rng = np.random.default_rng(0)
    kmeans = faiss.Kmeans(8, codes, niter=10, seed=1, spherical=True, min_points_per_centroid=1)
    real = np.ascontiguousarray(pocket.vectors.reshape(-1, 8))
    kmeans.train(real)
    centroids = kmeans.centroids
    assert centroids is not None
    codebook = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    fine = faiss.knn(real, codebook, 1)[1][:, 0]
    near = faiss.knn(codebook, codebook, NEAR)[1]

    per_image = len(KeySpec().active(GRID))
    count = -(-patches // per_image)
    coarse = pocket.tokens.reshape(-1, pocket.grid.height, pocket.grid.width)
    split = round(len(coarse) * (1 - HELD_OUT))
    places = draw_pictures(coarse, np.arange(split), count, rng)
    tokens = near[fine[places], rng.integers(0, NEAR, places.shape)].astype(np.uint16)
    np.save(folder / "tokens.npy", tokens)
    vectors = None
    if encoder:
        offsets = real - codebook[fine]  # of the real vectors from their codes
        vectors = _beside(tokens, codebook, offsets, rng, folder / "vectors.npy")

    places = draw_pictures(coarse, np.arange(split, len(coarse)), max(32, queries // 8), rng)
    held_out = near[fine[places], rng.integers(0, NEAR, places.shape)]
    asked = Keys(held_out, None, codebook, GRID, KeySpec(space="codebook"))
    rows = asked.rows(rng.choice(asked.size, queries, replace=False))
    return Corpus(np.load(folder / "tokens.npy", mmap_mode="r"), vectors, codebook, rows)


def _beside(
    tokens: np.ndarray,
    codebook: np.ndarray,
    offsets: np.ndarray,
    rng: np.random.Generator,
    path: Path,
) -> np.ndarray:
    """Unit vectors [images, N, 8], each beside its code by one of the offsets [n, 8]."""
    shape = (*tokens.shape, 8)
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    for i in range(0, len(tokens), 1024):
        rows = codebook[tokens[i : i + 1024]]
        rows = rows + offsets[rng.integers(0, len(offsets), rows.shape[:2])]
        vectors[i : i + 1024] = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return vectors
