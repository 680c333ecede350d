"""PatchIndex: token grids of real pictures, searchable by what surrounds a patch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..codebook import codebook_agreement
from ..errors import InputError
from ..grid import Grid
from .container import MappedFile, pieces
from .hits import Hits
from .keys import Keys, KeySpec
from .search import EXACT, PartialSearcher, Searcher, Structure, build_searcher, why_not_bits
from .sources import Source, SourceTable

if TYPE_CHECKING:
    from .calibration import Calibration


NOTHING_LEFT = "no picture of the index is left to retrieve from"


def nothing_matches(pattern: str, pictures: int) -> str:
    """What to say of a pattern that none of so many pictures matches."""
    return (
        f"no caption, name or origin of the {pictures} pictures in the index matches {pattern!r}; "
        "choose another pattern"
    )


@dataclass(frozen=True, eq=False)
class PatchIndex:
    """Token grids of pictures under one VQ, and a search structure over the keys made from them.

    `create_index` makes one, `load_index` reads one.
    """

    grid: Grid
    tokens: np.ndarray
    """Codes [images, N] uint16."""
    vectors: np.ndarray | None
    """The encoder's unit vectors [images, N, dim] float32, in the `encoder` key space while the
    search is exact: other structures keep codes of the keys instead."""
    codebook: np.ndarray
    """Unit rows [codes, dim] float32."""
    sources: SourceTable
    spec: KeySpec
    searcher: Structure
    """Over all pictures."""
    images: np.ndarray | None = None
    """Numbers of the pictures whose patches can be found; None for all."""
    calibration: Calibration | None = None
    """λ for each position, for the weight "auto"; fitted to these keys and all pictures."""
    uncalibrated: str = "it is not calibrated; run 'python -m arrag_engine calibrate'"
    """Why there is no calibration, and what to do."""
    file: MappedFile | None = None
    """What the arrays are mapped from, if they are not in memory."""

    @property
    def size(self) -> int:
        """Number of patches that can be found."""
        images = self.tokens if self.images is None else self.images
        return len(images) * len(self.active)

    @property
    def pictures(self) -> int:
        """Number of pictures whose patches can be found."""
        return len(self.tokens if self.images is None else self.images)

    @property
    def structure(self) -> str:
        """Kind of the search structure."""
        return self.searcher.kind

    @property
    def view(self) -> Hashable:
        """What tells two views of the same index apart."""
        return self.spec, None if self.images is None else self.images.tobytes()

    @property
    def partial(self) -> bool:
        """Whether queries may have numbers that do not count (NaN)."""
        return self.searcher.kind == "bits"

    @property
    def exact_vectors(self) -> bool:
        """Whether exact keys of the `encoder` key space can be made."""
        return self.vectors is not None

    @property
    def recall(self) -> float:
        """Share of the 64 nearest patches that the search found when it was made."""
        return self.searcher.recall

    @cached_property
    def active(self) -> np.ndarray:
        """Grid positions [A] that have a key."""
        return self.spec.active(self.grid)

    @cached_property
    def _view(self) -> Searcher:
        """What searches the pictures that can be found."""
        return self.searcher if self.images is None else self.searcher.restrict(self.images)

    def lookup(
        self,
        queries: np.ndarray,
        k: int,
        allowed: np.ndarray | None = None,
        without: Sequence[Sequence[int]] | None = None,
        complete: bool = False,
    ) -> Hits:
        """The k nearest patches of queries [B, D] by squared L2; all of them, if k is more.

        Args:
            allowed: Numbers of the pictures to look in; all that can be found when absent. A view
                (`restricted`) serves many look-ups better: each such call prepares a new search.
            without: For each query, numbers of pictures whose patches are left out.
            complete: Find only patches that have every neighbour which the query knows. Only where
                queries may be `partial`.

        Raises:
            InputError: No picture is allowed; the file that the index is mapped from has been
                written to.
        """
        self.check_unchanged()
        view = self if allowed is None else self.restricted(allowed)
        spare = max(map(len, without), default=0) * len(self.active) if without else 0
        xq = np.ascontiguousarray(queries, dtype=np.float32)
        count = min(k + spare, view.size)
        if complete:
            distances, ids = cast(PartialSearcher, view._view).search(xq, count, complete=True)
        else:
            distances, ids = view._view.search(xq, count)
        missing = ids < 0
        sources, positions = self.locate(np.maximum(ids, 0))
        codes = self.tokens[sources, positions].astype(np.int64)
        if codes.max(initial=0) >= len(self.codebook):
            raise InputError(
                f"the index holds code {codes.max()} of a codebook of {len(self.codebook)}: its "
                "file has changed; load it again"
            )
        hits = Hits(distances, *(np.where(missing, -1, f) for f in (codes, sources, positions)))
        return hits if without is None else hits.outside(without, k)

    def check_unchanged(self) -> None:
        """Make sure that the mapped file is unchanged.

        Raises:
            InputError: The file has been written to. An index in memory is not affected.
        """
        if self.file is not None:
            self.file.check()

    def locate(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source number, grid position) of patch numbers."""
        image, slot = np.divmod(ids, len(self.active))
        return image, self.active[slot]

    def numbers(self, hits: Hits) -> np.ndarray:
        """Patch numbers [B, K] of hits, -1 where nothing was found."""
        slots = np.searchsorted(self.active, hits.positions)
        return np.where(hits.found(), hits.sources * len(self.active) + slots, -1)

    def restricted(self, images: np.ndarray) -> PatchIndex:
        """A view that finds only patches of these pictures; rows keep their numbers.

        Raises:
            InputError: No picture is left.
        """
        if len(images) == 0:
            raise InputError(NOTHING_LEFT)
        images = np.unique(images)
        if self.images is None and len(images) == len(self.tokens):
            return self
        why = (
            f"it was calibrated with all of its {len(self.tokens)} pictures, not with "
            f"{len(images)}; use all pictures, or choose a number"
        )
        return self._without_calibration(why, images=images)

    def _without_calibration(self, why: str, **changes: Any) -> PatchIndex:
        """A changed index, which no calibration fits any longer; `why` if it had one."""
        reason = self.uncalibrated if self.calibration is None else why
        return replace(self, calibration=None, uncalibrated=reason, **changes)

    def matching(self, pattern: str) -> PatchIndex:
        """A view that finds only patches of pictures whose caption, name or origin matches.

        Raises:
            InputError: None does.
        """
        images = self.sources.matching(pattern)
        if len(images) == 0:
            raise InputError(nothing_matches(pattern, len(self.sources)))
        return self.restricted(images)

    def about(self, words: Iterable[str]) -> tuple[tuple[str, ...], PatchIndex | None]:
        """(the rarest of some words, a view of the pictures whose captions share them); None where
        no caption has any of the words."""
        subject = self.sources.about(words)
        return subject.words, self.restricted(subject.images) if len(subject.images) else None

    def matches(self, patterns: Sequence[str]) -> list[int]:
        """Number of the pictures, of all, that match each pattern; see `SourceTable.any_of`."""
        return [len(self.sources.any_of([pattern])) for pattern in patterns]

    def filtered(self, include: Sequence[str], exclude: Sequence[str]) -> PatchIndex:
        """A view that finds only patches of pictures that match a pattern to include, if there
        are any, and none to exclude; see `SourceTable.any_of`.

        Raises:
            InputError: No picture is left.
        """
        images = self.sources.filtered(include, exclude)
        return self.restricted(
            images if self.images is None else np.intersect1d(images, self.images)
        )

    def identity(self) -> str:
        """What stays the same of an index whatever its keys and search: SHA-256 of the pictures'
        names and tokens. A view of some of its pictures has the identity of the whole."""
        digest = hashlib.sha256(f"{self.grid} {len(self.tokens)}".encode())
        for data in (self.tokens, self.sources.names.ends):
            for piece in pieces(data):
                digest.update(np.ascontiguousarray(piece).view(np.uint8).data)
        for piece in self.sources.names.stream().chunks:
            digest.update(np.ascontiguousarray(piece).data)
        return digest.hexdigest()

    def rekeyed(self, spec: KeySpec) -> PatchIndex:
        """The same patches, and of a view the same pictures, found by other keys.

        Raises:
            InputError: The search is not exact: the keys of such an index are fixed at build.
        """
        if spec == self.spec:
            return self
        if self.searcher.kind not in EXACT:
            raise InputError(
                f"the keys of an index with a {self.searcher.kind} structure are fixed "
                f"({self.spec.neighborhood}, {self.spec.borders}, {self.spec.space}); "
                "choose 'as built', or build it again with other keys"
            )
        if spec.space == "encoder" and not self.exact_vectors:
            raise InputError(
                "the index was built in the codebook key space and holds no encoder vectors; "
                "choose codebook, or build it again with encoder keys"
            )
        other = create_index(
            *(self.grid, self.tokens, self.vectors, self.codebook, self.sources, spec), "flat"
        )
        why = (
            f"it was calibrated with the keys {self.spec}, not with {spec}; choose the keys as "
            "built, or choose a number"
        )
        rekeyed = self._without_calibration(
            why, vectors=other.vectors, spec=spec, searcher=other.searcher
        )
        return rekeyed.by_bits() if self.partial else rekeyed

    def by_bits(self) -> PatchIndex:
        """The same patches, searched by bits where exact search is replaced by it: the index itself
        if its keys are no signs, or its search is not exact."""
        if self.searcher.kind != "flat":
            return self
        keys = Keys(self.tokens, self.vectors, self.codebook, self.grid, self.spec)
        if why_not_bits(keys):
            return self
        return replace(self, searcher=build_searcher(keys, "bits"))

    def check_fits(self, grid: Grid, codebook: np.ndarray) -> None:
        """Refuse a model whose tokens mean something else than the index's.

        Args:
            grid: What the model draws.
            codebook: The model's unit rows [codes, dim].

        Raises:
            InputError: Another grid, another number of codes, or another VQ; or the index has
                changed on disk since it was mapped.
        """
        self.check_unchanged()
        check_model(self.grid, self.codebook, grid, codebook)


def check_model(own: Grid, rows: np.ndarray, grid: Grid, codebook: np.ndarray) -> None:
    """Refuse a model whose tokens mean something else than those of an index.

    Args:
        own: What the index was built for.
        rows: The codebook that it was built with.
        grid: What the model draws.
        codebook: The model's unit rows [codes, dim].

    Raises:
        InputError: Another grid, another number of codes, or another VQ.
    """
    if grid != own:
        raise InputError(
            f"the index was built for a {own} grid, the model draws {grid}; "
            "build an index with this model"
        )
    agreement = codebook_agreement(codebook, rows)
    if not agreement.same:
        raise InputError(
            f"the index was built with another VQ ({agreement}); build an index with this model"
        )


def create_index(
    grid: Grid,
    tokens: np.ndarray,
    vectors: np.ndarray | None,
    codebook: np.ndarray,
    sources: SourceTable | Iterable[Source],
    spec: KeySpec | None = None,
    structure: str = "auto",
    recall_target: float = 0.95,
    progress: Callable[[int, int], None] | None = None,
) -> PatchIndex:
    """An index with a search structure over the keys of its patches.

    Args:
        tokens: [images, N] uint16; like the vectors, they may be mapped from a file.
        vectors: Unit vectors [images, N, dim] float32; needed in the `encoder` key space.
        codebook: Unit rows [codes, dim] float32.
        sources: One for each token grid.
        structure: Kind of search structure, or auto: chosen by size.
        recall_target: Share of the nearest 64 that an approximate structure must find.
        progress: Called with (steps done, steps in all).

    Raises:
        InputError: An unknown structure, or one that these keys cannot have; no place of the grid
            has a key.
    """
    spec = spec or KeySpec()
    spec.check_grid(grid)
    table = sources if isinstance(sources, SourceTable) else SourceTable.from_sources(sources)
    if len(table) != len(tokens):
        raise ValueError(f"{len(tokens)} token grids come with {len(table)} sources")
    keys = Keys(tokens, vectors, codebook, grid, spec)
    searcher = build_searcher(keys, structure, recall_target, progress)
    exact = searcher.kind == "flat" and spec.space == "encoder"
    kept = vectors if exact else None  # a flat search is made of them
    return PatchIndex(grid, tokens, kept, codebook, table, spec, searcher)
