"""Looking patches up in one index file or in the shards of an index.

A shard answers about its own pictures, numbered from 0. Where an answer depends on the whole (how
rare a word is, whether nothing matches), shards are counted first, and told then what was decided:
a `View` is so small that every shard works it out for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..errors import InputError
from ..grid import Grid
from .calibration import Calibration
from .file import in_shards, load_index
from .hits import Hits
from .keys import KeySpec
from .manifest import Manifest, is_manifest, open_shard, read_manifest
from .patch_index import NOTHING_LEFT, PatchIndex, check_model, nothing_matches
from .sources import Source
from .subject import Holders, fold, weigh

KEPT_VIEWS = 8
"""Views of a shard whose search stays prepared."""


class Part(Protocol):
    """A restriction of what is found; hashable and small."""

    def pictures(self, shard: LocalLookup) -> np.ndarray:
        """Numbers [n] of the pictures of a shard that it leaves."""
        ...


@dataclass(frozen=True)
class Matching:
    """See `PatchIndex.matching`."""

    pattern: str

    def pictures(self, shard: LocalLookup) -> np.ndarray:
        return shard.index.sources.matching(self.pattern)


@dataclass(frozen=True)
class About:
    """See `PatchIndex.about`."""

    weights: tuple[tuple[str, float], ...]
    """Of the words that decide."""
    most: float
    """Summed weight of the words of the pictures that are left."""

    def pictures(self, shard: LocalLookup) -> np.ndarray:
        weights = dict(self.weights)
        return shard.holding(frozenset(weights)).best(weights, self.most)


@dataclass(frozen=True)
class Filtered:
    """See `PatchIndex.filtered`."""

    include: tuple[str, ...]
    exclude: tuple[str, ...]

    def pictures(self, shard: LocalLookup) -> np.ndarray:
        return shard.index.sources.filtered(self.include, self.exclude)


@dataclass(frozen=True)
class View:
    """Which pictures of an index may be found, those that every part leaves, and by which keys,
    those as built if none are named."""

    parts: tuple[Part, ...] = ()
    spec: KeySpec | None = None
    bits: bool = False
    """See `PatchIndex.by_bits`."""


class TokenRows(Protocol):
    """Codes [images, N] of pictures: an array, or what is indexed like one."""

    def __len__(self) -> int: ...
    def __getitem__(self, where: Any, /) -> np.ndarray: ...


class ShardFacts(NamedTuple):
    """What a source of patches must know of each shard."""

    codebook: np.ndarray
    per_image: int
    recall: float
    captioned: bool
    exact_vectors: bool


class LocalLookup:
    """The patches of one index file on this machine, as a shard answers about them."""

    def __init__(self, index: PatchIndex) -> None:
        self.index = index
        self._views: dict[View, PatchIndex | None] = {View(): index}
        self._holders: tuple[frozenset[str], Holders] = (frozenset(), Holders(0, {}))

    def facts(self) -> ShardFacts:
        index = self.index
        return ShardFacts(
            index.codebook,
            len(index.active),
            index.recall,
            index.sources.captioned,
            index.exact_vectors,
        )

    def lookup(
        self,
        view: View,
        queries: np.ndarray,
        k: int,
        allowed: np.ndarray | None = None,
        without: Sequence[Sequence[int]] | None = None,
        complete: bool = False,
    ) -> Hits:
        """The k nearest patches of queries [B, D]; no column where the view has no picture here."""
        part = self._view(view)
        if part is None or (allowed is not None and len(allowed) == 0):
            empty = np.empty((len(queries), 0), np.int64)
            return Hits(empty.astype(np.float32), empty, empty, empty)
        return part.lookup(queries, k, allowed, without, complete)

    def pictures(self, view: View) -> int:
        """Number of pictures of a view; the view is prepared for look-ups."""
        part = self._view(view)
        return 0 if part is None else part.pictures

    def partial(self, view: View) -> bool:
        """See `PatchIndex.partial`; False where the view has no picture here."""
        part = self._view(view)
        return part is not None and part.partial

    def counts(self, words: frozenset[str]) -> dict[str, int]:
        """Number of pictures whose captions have each word."""
        return self.holding(words).counts()

    def most(self, words: frozenset[str], weights: dict[str, float]) -> float:
        """The largest summed weight of a picture's words."""
        return float(self.holding(words).sums(weights).max(initial=0.0))

    def matches(self, patterns: Sequence[str]) -> list[int]:
        """Number of pictures that match each pattern."""
        return self.index.matches(patterns)

    def source(self, number: int) -> Source:
        return self.index.sources[number]

    def tokens(self, numbers: np.ndarray) -> np.ndarray:
        """Codes [n, N] of pictures [n]."""
        self.index.check_unchanged()
        return np.array(self.index.tokens[numbers])

    def licence_counts(self) -> dict[str, int]:
        return self.index.sources.licence_counts()

    def _view(self, view: View) -> PatchIndex | None:
        """The part of the index that a view shows; None if it has no picture here."""
        if view not in self._views:
            if len(self._views) > KEPT_VIEWS:
                self._views = {View(): self.index}
            self._views[view] = self._made(view)
        return self._views[view]

    def _made(self, view: View) -> PatchIndex | None:
        images = np.arange(len(self.index.tokens))
        for part in view.parts:
            images = np.intersect1d(images, part.pictures(self))
        if len(images) == 0:
            return None
        shown = self.index.restricted(images)
        shown = shown if view.spec is None else shown.rekeyed(view.spec)
        return shown.by_bits() if view.bits else shown

    def holding(self, words: frozenset[str]) -> Holders:
        """The pictures with these words; those of the last question stay known."""
        if not words <= self._holders[0]:
            self._holders = (words, self.index.sources.holders(words))
        return self._holders[1]


class ShardedLookup:
    """The patches of an index in shards; what it finds is what one file of all would find, where
    the search is exact.

    Args:
        shards: A `LocalLookup` for each of the manifest's.
    """

    calibration: Calibration | None = None
    uncalibrated = "an index in shards has no calibration; choose a number"

    def __init__(
        self,
        manifest: Manifest,
        shards: Any,
        view: View | None = None,
        facts: Sequence[ShardFacts] = (),
    ) -> None:
        self.manifest = manifest
        self.shards = shards
        self.view = view or View()
        """Tells two views of the same index apart."""
        self.facts = facts or self.ask_all("facts")
        self.grid: Grid = manifest.grid
        self.sources = ShardedSources(self)
        self.tokens = ShardedTokens(self)

    def ask(self, method: str, each: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What every shard answers to a method of `LocalLookup`, with its own arguments."""
        return [getattr(s, method)(*a) for s, a in zip(self.shards, each, strict=True)]

    def ask_one(self, number: int, method: str, *arguments: Any) -> Any:
        """The same of one shard."""
        return getattr(self.shards[number], method)(*arguments)

    def ask_all(self, method: str, *arguments: Any) -> list[Any]:
        return self.ask(method, [arguments] * len(self.manifest.shards))

    @property
    def spec(self) -> KeySpec:
        return self.view.spec or self.manifest.keys

    @property
    def structure(self) -> str:
        return self.manifest.structure

    @cached_property
    def pictures(self) -> int:
        """Number of pictures whose patches can be found."""
        return sum(self.ask_all("pictures", self.view))

    @property
    def size(self) -> int:
        """Number of patches that can be found."""
        return self.pictures * len(self.spec.active(self.grid))

    @property
    def partial(self) -> bool:
        """Whether queries may have numbers that do not count (NaN)."""
        return any(self.ask_all("partial", self.view))

    @property
    def exact_vectors(self) -> bool:
        return all(facts.exact_vectors for facts in self.facts)

    @property
    def recall(self) -> float:
        """Of the worst shard."""
        return min(facts.recall for facts in self.facts)

    @property
    def codebook(self) -> np.ndarray:
        return self.facts[0].codebook

    def lookup(
        self,
        queries: np.ndarray,
        k: int,
        allowed: np.ndarray | None = None,
        without: Sequence[Sequence[int]] | None = None,
        complete: bool = False,
    ) -> Hits:
        """See `PatchIndex.lookup`."""
        if allowed is not None and len(allowed) == 0:
            raise InputError(NOTHING_LEFT)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        each = [
            (self.view, queries, k, self._inside(j, allowed), self._left_out(j, without), complete)
            for j in range(len(self.manifest.shards))
        ]
        return merged(self.ask("lookup", each), self.manifest.firsts, k)

    def _inside(self, number: int, pictures: Any) -> np.ndarray | None:
        """Those of some pictures that are in a shard, by their numbers there."""
        if pictures is None:
            return None
        shard = self.manifest.shards[number]
        own = np.asarray(pictures, np.int64) - shard.first
        return own[(own >= 0) & (own < shard.pictures)]

    def _left_out(
        self, number: int, without: Sequence[Sequence[int]] | None
    ) -> list[np.ndarray] | None:
        parts = [self._inside(number, pictures) for pictures in without or ()]
        kept = [part for part in parts if part is not None]
        return kept if any(len(part) for part in kept) else None

    def check_fits(self, grid: Grid, codebook: np.ndarray) -> None:
        """See `PatchIndex.check_fits`."""
        check_model(self.grid, self.codebook, grid, codebook)

    def identity(self) -> str:
        """What a trace names the index by; another one than that of the same pictures in one
        file."""
        return self.manifest.identity

    def about(self, words: Iterable[str]) -> tuple[tuple[str, ...], ShardedLookup | None]:
        """See `PatchIndex.about`."""
        asked = frozenset(part for word in words for part in fold(word))
        counts: dict[str, int] = {}
        for own in self.ask_all("counts", asked):
            counts |= {word: counts.get(word, 0) + count for word, count in own.items()}
        weights = weigh(counts, self.manifest.pictures)
        if not weights:
            return (), None
        most = max(self.ask_all("most", asked, weights))
        return tuple(weights), self._narrowed(About(tuple(weights.items()), most))

    def matching(self, pattern: str) -> ShardedLookup:
        """See `PatchIndex.matching`."""
        view = self._narrowed(Matching(pattern))
        if view.pictures == 0:
            raise InputError(nothing_matches(pattern, self.manifest.pictures))
        return view

    def matches(self, patterns: Sequence[str]) -> list[int]:
        """See `PatchIndex.matches`."""
        return np.sum(self.ask_all("matches", tuple(patterns)), axis=0).tolist()

    def filtered(self, include: Sequence[str], exclude: Sequence[str]) -> ShardedLookup:
        """See `PatchIndex.filtered`."""
        view = self._narrowed(Filtered(tuple(include), tuple(exclude)))
        if view.pictures == 0:
            raise InputError(NOTHING_LEFT)
        return view

    def rekeyed(self, spec: KeySpec) -> ShardedLookup:
        """See `PatchIndex.rekeyed`."""
        if spec == self.spec:
            return self
        view = self._with(replace(self.view, spec=spec))
        view.pictures  # noqa: B018  # a shard that cannot have the keys says so now
        return view

    def by_bits(self) -> ShardedLookup:
        """See `PatchIndex.by_bits`."""
        return self._with(replace(self.view, bits=True))

    def _narrowed(self, part: Part) -> ShardedLookup:
        return self._with(replace(self.view, parts=(*self.view.parts, part)))

    def _with(self, view: View) -> ShardedLookup:
        return type(self)(self.manifest, self.shards, view, self.facts)


AnyIndex = PatchIndex | ShardedLookup


def one_file(index: AnyIndex) -> PatchIndex:
    """The index, which must be in one file.

    Raises:
        InputError: It is in shards.
    """
    if isinstance(index, ShardedLookup):
        raise in_shards(index.manifest.path)
    return index


def merged(parts: Sequence[Hits], firsts: np.ndarray, k: int) -> Hits:
    """The k nearest hits [B, <= k] of all shards, by distance, source and position.

    Args:
        firsts: Number [shards] of the first picture of each.
    """
    numbered = [
        replace(part, sources=np.where(part.found(), part.sources + first, -1))
        for part, first in zip(parts, firsts.tolist(), strict=True)
    ]
    fields = zip(*(part.fields for part in numbered), strict=True)
    distances, codes, sources, positions = (np.concatenate(field, axis=1) for field in fields)
    order = np.lexsort((positions, sources, distances), axis=-1)[:, :k]
    return Hits(
        *(np.take_along_axis(f, order, axis=1) for f in (distances, codes, sources, positions))
    )


class ShardedSources(Sequence[Source]):
    """The pictures of all shards, each read when asked for."""

    def __init__(self, lookup: ShardedLookup) -> None:
        self.lookup = lookup
        self._read: dict[int, Source] = {}

    def __len__(self) -> int:
        return self.lookup.manifest.pictures

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        number = range(len(self))[i]
        if number not in self._read:
            shard, own = located(self.lookup.manifest.firsts, number)
            self._read[number] = self.lookup.ask_one(int(shard), "source", int(own))
        return self._read[number]

    @property
    def captioned(self) -> bool:
        """Whether any picture has a caption."""
        return any(facts.captioned for facts in self.lookup.facts)

    def licence_counts(self) -> dict[str, int]:
        """Pictures of each licence, the most frequent first."""
        counts: dict[str, int] = {}
        for own in self.lookup.ask_all("licence_counts"):
            counts |= {name: counts.get(name, 0) + count for name, count in own.items()}
        return dict(sorted(counts.items(), key=lambda pair: -pair[1]))


class ShardedTokens:
    """Codes [images, N] of the pictures of all shards, read when asked for."""

    def __init__(self, lookup: ShardedLookup) -> None:
        self.lookup = lookup

    def __len__(self) -> int:
        return self.lookup.manifest.pictures

    def __getitem__(self, where: Any) -> np.ndarray:
        """Rows of pictures [...], or with positions beside them the codes there; as of an array."""
        pictures, *positions = where if isinstance(where, tuple) else (where,)
        numbers, places = np.unique(np.asarray(pictures), return_inverse=True)
        rows = np.empty((len(numbers), self.lookup.grid.size), np.uint16)
        shards, own = located(self.lookup.manifest.firsts, numbers)
        for shard in np.unique(shards).tolist():
            rows[shards == shard] = self.lookup.ask_one(shard, "tokens", own[shards == shard])
        return rows[(places.reshape(np.shape(pictures)), *positions)]


def located(firsts: np.ndarray, pictures: Any) -> tuple[np.ndarray, np.ndarray]:
    """(shard, number there) of pictures [n]."""
    shards = np.searchsorted(firsts, pictures, side="right") - 1
    return shards, pictures - firsts[shards]


def open_lookup(path: Path, cluster: str = "") -> AnyIndex:
    """The patches of an index file, or of the shards that a manifest names.

    Args:
        cluster: Address of the Ray cluster whose machines search the shards; this machine does if
            it is empty.

    Raises:
        InputError: A file is missing, damaged or not what the manifest says.
    """
    if not is_manifest(path):
        return load_index(path)
    manifest = read_manifest(path)
    if cluster:
        from .cluster import open_on_cluster

        return open_on_cluster(manifest, cluster)
    indexes = [open_shard(manifest, number) for number in range(len(manifest.shards))]
    return ShardedLookup(manifest, [LocalLookup(index) for index in indexes])
