"""Changes of a built index: remove pictures, add others, merge several indexes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..codebook import codebook_agreement
from ..errors import InputError
from ..grid import neighbor_table
from .patch_index import PatchIndex, create_index
from .search import check_search
from .sources import SourceTable

Progress = Callable[[int, int], None]
IMAGES = 1024
"""Pictures whose vectors are recovered at once."""


@dataclass(frozen=True)
class Patches:
    """Token grids that are not yet searchable."""

    tokens: np.ndarray
    """[images, N] uint16."""
    vectors: np.ndarray | None
    """[images, N, dim] float32."""
    sources: SourceTable


@dataclass(frozen=True)
class SearchChoice:
    """The search structure that `create_index` makes."""

    structure: str = "auto"
    recall_target: float = 0.95

    def __post_init__(self) -> None:
        check_search(self.structure, self.recall_target)


def patches_of(index: PatchIndex, space: str) -> Patches:
    """The token grids of an index, with what keys of a key space are made of.

    Raises:
        InputError: The index has changed on disk since it was mapped.
    """
    index.check_unchanged()
    if space == "codebook":
        return Patches(index.tokens, None, index.sources)
    return Patches(index.tokens, _encoder_vectors(index), index.sources)


def _encoder_vectors(index: PatchIndex) -> np.ndarray:
    """Unit vectors [images, N, dim] that make the keys of an index.

    A structure that is not exact keeps rounded keys instead. A vector is then the normalised sum of
    its parts in the keys of the patches around it, or its code's row where no key has a part.
    """
    if index.vectors is not None:
        return index.vectors
    images, dim = len(index.tokens), index.codebook.shape[1]
    neighbors = neighbor_table(index.grid, index.spec.neighborhood)[index.active]  # [A, offsets]
    vectors = np.empty((images, index.grid.size, dim), np.float32)
    for first in range(0, images, IMAGES):
        some = slice(first, min(first + IMAGES, images))
        ids = np.arange(some.start * len(index.active), some.stop * len(index.active))
        keys = index.searcher.reconstruct(ids)[:, : neighbors.shape[1] * dim]
        parts = keys.reshape(some.stop - some.start, *neighbors.shape, dim)
        vectors[some] = _from_parts(parts, neighbors, index.codebook[index.tokens[some]])
    return vectors


def _from_parts(parts: np.ndarray, neighbors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Unit vectors [images, N, dim] of the parts of keys [images, A, offsets, dim].

    Args:
        neighbors: Where the parts come from [A, offsets]; -1 is outside the grid.
        rows: [images, N, dim]: the vectors that no key has a part of.
    """
    sums = np.zeros_like(rows)
    for offset, places in enumerate(neighbors.T):  # no place twice
        inside = places >= 0
        sums[:, places[inside]] += parts[:, inside, offset]
    lengths = np.linalg.norm(sums, axis=-1, keepdims=True)
    return np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), rows)


def remove_pictures(
    index: PatchIndex,
    pictures: np.ndarray,
    search: SearchChoice | None = None,
    progress: Progress | None = None,
) -> PatchIndex:
    """The index without the pictures of these numbers.

    Raises:
        InputError: No picture would be left, or the index cannot be rebuilt.
    """
    keep = np.setdiff1d(np.arange(len(index.tokens)), pictures)
    if len(keep) == 0:
        raise InputError(
            f"that would remove all {len(index.tokens)} pictures of the index; "
            "choose a narrower pattern, or delete the file"
        )
    return _rebuilt(index, [patches_of(index, index.spec.space)], keep, search, progress)


def add_patches(
    index: PatchIndex,
    more: Patches,
    search: SearchChoice | None = None,
    progress: Progress | None = None,
) -> PatchIndex:
    """The index and further token grids of the same VQ; what it already has is left out.

    Raises:
        InputError: The index cannot be rebuilt.
    """
    parts = [patches_of(index, index.spec.space), more]
    return _rebuilt(index, parts, None, search, progress)


def merge_indexes(
    indexes: Sequence[PatchIndex],
    names: Sequence[str],
    search: SearchChoice | None = None,
    progress: Progress | None = None,
) -> PatchIndex:
    """One index of all, keyed like the first; a picture that several hold is in it once.

    Args:
        names: What messages call the indexes.

    Raises:
        InputError: They differ in grid or VQ, or one lacks what the keys are made of.
    """
    first = indexes[0]
    parts = []
    for index, name in zip(indexes, names, strict=True):
        if problem := _difference(first, index):
            raise InputError(f"{names[0]} and {name} cannot be merged: {problem}")
        parts.append(patches_of(index, first.spec.space))
    return _rebuilt(first, parts, None, search, progress)


def _difference(first: PatchIndex, other: PatchIndex) -> str:
    """Why two indexes cannot become one; empty if they can."""
    if first.grid != other.grid:
        return f"one has a {first.grid} grid, the other {other.grid}"
    agreement = codebook_agreement(first.codebook, other.codebook)
    if not agreement.same:
        return "they were built with different VQs"
    if first.spec.space == "encoder" and other.spec.space == "codebook":
        return (
            "the first has encoder keys, and the other holds no encoder vectors; "
            "name it first, so that both get codebook keys"
        )
    return ""


def _rebuilt(
    like: PatchIndex,
    parts: Sequence[Patches],
    keep: np.ndarray | None,
    search: SearchChoice | None,
    progress: Progress | None,
) -> PatchIndex:
    """An index keyed like another one, of chosen pictures (by default, each once) of the parts."""
    search = search or SearchChoice()
    sources = SourceTable.concat([part.sources for part in parts])
    rows = sources.without_duplicates() if keep is None else keep
    vectors = [part.vectors for part in parts if part.vectors is not None]
    return create_index(
        like.grid,
        np.concatenate([part.tokens for part in parts])[rows],
        np.concatenate(vectors)[rows] if like.spec.space == "encoder" else None,
        like.codebook,
        sources.take(rows),
        like.spec,
        search.structure,
        search.recall_target,
        progress,
    )
