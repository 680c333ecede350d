"""The pictures that patches come from: a table in columns, read on access."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, overload

import numpy as np

from .blobs import Blobs, BlobWriter
from .container import Tensor, check_array
from .subject import Holders, Subject, find_holders, find_subject

SEARCHED = ("caption", "name", "origin")
"""Fields that a pattern is looked for in, unless others are named."""
DIGEST = 32
KEPT_SUBJECTS = 64


@dataclass(frozen=True)
class Source:
    """A picture, or the part of one, that a token grid was made from."""

    name: str
    caption: str
    width: int
    height: int
    """In pixels; 0 if unknown."""
    sha256: str
    """Of the picture's file, 64 hexadecimal digits; empty if unknown."""
    licence: str
    thumbnail: bytes
    """A small JPEG; may be empty."""
    origin: str = ""
    """Where the picture comes from: an address or any text."""
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Left, top, right, bottom in pixels of the upright picture; all 0 if unknown."""


@dataclass(frozen=True, eq=False)
class SourceTable(Sequence[Source]):
    """The sources of an index, one row for each token grid."""

    names: Blobs
    captions: Blobs
    origins: Blobs
    thumbnails: Blobs
    licence_names: tuple[str, ...]
    licences: np.ndarray
    """[images] uint32: numbers of `licence_names`."""
    sizes: np.ndarray
    """[images, 2] int32: width, height of the upright picture."""
    crops: np.ndarray
    """[images, 4] int32."""
    sha256: np.ndarray
    """[images, 32] uint8; zeros if unknown."""

    @classmethod
    def from_sources(cls, sources: Iterable[Source]) -> SourceTable:
        """The table of sources that are looked at one at a time."""
        names, captions, origins, thumbnails = (BlobWriter() for _ in range(4))
        numbers: dict[str, int] = {}
        licences, sizes, crops, digests = array("I"), array("i"), array("i"), bytearray()
        for source in sources:
            names.append(source.name.encode(errors="replace"))
            captions.append(source.caption.encode(errors="replace"))
            origins.append(source.origin.encode(errors="replace"))
            thumbnails.append(source.thumbnail)
            licence = source.licence.encode(errors="replace").decode()
            licences.append(numbers.setdefault(licence, len(numbers)))
            sizes.extend((source.width, source.height))
            crops.extend(source.crop)
            digests += bytes.fromhex(source.sha256 or "00" * DIGEST)
        return cls(
            names.blobs(),
            captions.blobs(),
            origins.blobs(),
            thumbnails.blobs(),
            tuple(numbers),
            np.array(licences, np.uint32),
            np.array(sizes, np.int32).reshape(-1, 2),
            np.array(crops, np.int32).reshape(-1, 4),
            np.frombuffer(bytes(digests), np.uint8).reshape(-1, DIGEST),
        )

    @classmethod
    def unknown(cls, images: int) -> SourceTable:
        """A table of pictures without any facts."""
        blank = Blobs((np.zeros(0, np.uint8),), np.zeros((images, 3), np.int64))
        return cls(
            *(blank, blank, blank, blank),
            ("",),
            np.zeros(images, np.uint32),
            np.zeros((images, 2), np.int32),
            np.zeros((images, 4), np.int32),
            np.zeros((images, DIGEST), np.uint8),
        )

    def __len__(self) -> int:
        return len(self.licences)

    @overload
    def __getitem__(self, i: int) -> Source: ...
    @overload
    def __getitem__(self, i: slice) -> SourceTable: ...
    def __getitem__(self, i: int | slice) -> Source | SourceTable:
        if isinstance(i, slice):
            return self.take(np.arange(len(self))[i])
        width, height = self.sizes[i].tolist()
        left, top, right, bottom = self.crops[i].tolist()
        return Source(
            _text(self.names[i]),
            _text(self.captions[i]),
            width,
            height,
            self.sha256[i].tobytes().hex() if self.sha256[i].any() else "",
            self.licence_names[self.licences[i]],
            self.thumbnails[i],
            _text(self.origins[i]),
            (left, top, right, bottom),
        )

    def take(self, rows: np.ndarray) -> SourceTable:
        """The table of some pictures, in the order given."""
        licence_names, licences = _used(self.licence_names, self.licences[rows])
        return SourceTable(
            self.names.take(rows),
            self.captions.take(rows),
            self.origins.take(rows),
            self.thumbnails.take(rows),
            licence_names,
            licences,
            self.sizes[rows],
            self.crops[rows],
            self.sha256[rows],
        )

    @classmethod
    def concat(cls, tables: Sequence[SourceTable]) -> SourceTable:
        """One table after the other."""
        offsets = np.cumsum([0, *(len(t.licence_names) for t in tables)])
        licence_names, licences = _used(
            tuple(name for t in tables for name in t.licence_names),
            np.concatenate([t.licences + n for t, n in zip(tables, offsets, strict=False)]),
        )
        return cls(
            Blobs.concat([t.names for t in tables]),
            Blobs.concat([t.captions for t in tables]),
            Blobs.concat([t.origins for t in tables]),
            Blobs.concat([t.thumbnails for t in tables]),
            licence_names,
            licences,
            np.concatenate([t.sizes for t in tables]),
            np.concatenate([t.crops for t in tables]),
            np.concatenate([t.sha256 for t in tables]),
        )

    def arrays(self) -> dict[str, Tensor]:
        """What `from_arrays` reads."""
        licence_names = BlobWriter()
        for name in self.licence_names:
            licence_names.append(name.encode())
        blobs = {
            "names": self.names,
            "captions": self.captions,
            "origins": self.origins,
            "thumbnails": self.thumbnails,
            "licence_names": licence_names.blobs(),
        }
        columns: dict[str, Tensor] = {
            "licences": self.licences,
            "sizes": self.sizes,
            "crops": self.crops,
            "sha256": self.sha256,
        }
        for name, blob in blobs.items():
            columns |= {name: blob.stream(), f"{name}.ends": blob.ends}
        return columns

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], images: int) -> SourceTable:
        """The table in a file, its texts and thumbnails left there.

        Raises:
            ValueError: An array is missing or does not fit the others.
        """
        columns = ("names", "captions", "origins", "thumbnails", "licence_names")
        wanted = {*columns, *(f"{c}.ends" for c in columns)} | {
            *("licences", "sizes", "crops", "sha256")
        }
        if missing := sorted(wanted - set(arrays)):
            raise ValueError(f"it lacks {', '.join(f'sources.{name}' for name in missing)}")
        if unknown := sorted(set(arrays) - wanted):
            raise ValueError(f"it holds {ascii(unknown[0])[:40]}, which no table of sources has")
        blobs = {name: _read_blobs(name, arrays, images) for name in columns}
        licences, sizes, crops = arrays["licences"], arrays["sizes"], arrays["crops"]
        check_array("sources.licences", licences, np.uint32, (images,))
        check_array("sources.sizes", sizes, np.int32, (images, 2))
        check_array("sources.crops", crops, np.int32, (images, 4))
        check_array("sources.sha256", arrays["sha256"], np.uint8, (images, DIGEST))
        try:
            names = [name.decode() for name in blobs.pop("licence_names")]
        except UnicodeDecodeError as error:
            raise ValueError("the name of a licence is not UTF-8") from error
        if images and licences.max() >= len(names):
            raise ValueError(f"a picture has licence {licences.max()} of {len(names)}")
        if (sizes < 0).any():
            raise ValueError("a picture has a negative size")
        if ((crops[:, :2] < 0) | (crops[:, :2] > crops[:, 2:]) | (crops[:, 2:] > sizes)).any():
            raise ValueError("a crop lies outside its picture")
        return cls(
            **blobs,
            licence_names=tuple(names),
            licences=licences,
            sizes=sizes,
            crops=crops,
            sha256=arrays["sha256"],
        )

    @property
    def text_columns(self) -> dict[str, Blobs]:
        """Texts that differ from picture to picture, UTF-8."""
        return {"name": self.names, "caption": self.captions, "origin": self.origins}

    def licence_counts(self) -> dict[str, int]:
        """Pictures of each licence, the most frequent first."""
        counts = np.bincount(self.licences, minlength=len(self.licence_names)).tolist()
        pairs = zip(self.licence_names, counts, strict=True)
        return dict(sorted(((n, c) for n, c in pairs if c), key=lambda p: -p[1]))

    @property
    def captioned(self) -> bool:
        """Whether any picture has a caption."""
        return bool(self.captions.lengths.any())

    def about(self, words: Iterable[str]) -> Subject:
        """The pictures whose captions share the rarest of some words; kept for the next drawing."""
        asked = frozenset(words)
        if asked not in self._subjects:
            if len(self._subjects) >= KEPT_SUBJECTS:
                self._subjects.clear()
            self._subjects[asked] = find_subject(map(_text, self.captions), asked)
        return self._subjects[asked]

    def holders(self, words: Iterable[str]) -> Holders:
        """Which pictures have which of some words in their captions."""
        return find_holders(map(_text, self.captions), words)

    @cached_property
    def _subjects(self) -> dict[frozenset[str], Subject]:
        return {}

    def matching(self, pattern: str, fields: Sequence[str] = SEARCHED) -> np.ndarray:
        """Numbers of the pictures with a field that matches, whatever the case of its letters.

        A pattern with `*`, `?` or `[` must match the whole text, as file patterns do; any other one
        must occur in it.

        Args:
            fields: Some of name, caption, origin, licence.
        """
        pattern = pattern.casefold()
        glob = any(mark in pattern for mark in "*?[")

        def matches(text: str) -> bool:
            text = text.casefold()
            return fnmatchcase(text, pattern) if glob else pattern in text

        hits = np.zeros(len(self), bool)
        for field in fields:
            if field == "licence":  # few different ones
                hits |= np.array([matches(n) for n in self.licence_names], bool)[self.licences]
            else:
                texts = map(_text, self.text_columns[field])
                hits |= np.fromiter(map(matches, texts), bool, len(self))
        return np.flatnonzero(hits)

    def any_of(self, patterns: Iterable[str]) -> np.ndarray:
        """Numbers of the pictures that match one of the patterns; `=name` is the name itself,
        whatever its spaces."""
        hits = np.zeros(len(self), bool)
        for pattern in patterns:
            hits[self.named(pattern[1:]) if pattern.startswith("=") else self.matching(pattern)] = 1
        return np.flatnonzero(hits)

    def filtered(self, include: Sequence[str], exclude: Sequence[str]) -> np.ndarray:
        """Numbers, ascending, of the pictures that match a pattern to include, if there are any,
        and none to exclude."""
        images = self.any_of(include) if include else np.arange(len(self))
        return np.setdiff1d(images, self.any_of(exclude)) if exclude else images

    def named(self, name: str) -> np.ndarray:
        """Numbers of the pictures of a name, whatever its spaces and line breaks."""
        wanted = name.split()
        texts = map(_text, self.text_columns["name"])
        return np.flatnonzero([text.split() == wanted for text in texts])

    def names_by_hash(self) -> dict[str, str]:
        """Name of each picture file by its sha256, if that is known."""
        known = np.flatnonzero(self.sha256.any(axis=1)).tolist()
        return {self.sha256[i].tobytes().hex(): _text(self.names[i]) for i in known}

    def without_duplicates(self) -> np.ndarray:
        """Numbers of the pictures but for those that show the same part of the same file as an
        earlier one; files of unknown hash are all different."""
        crops = np.ascontiguousarray(self.crops).view(np.uint8)
        rows = np.ascontiguousarray(np.concatenate((self.sha256, crops), axis=1))
        first = np.zeros(len(self), bool)
        first[np.unique(rows.view(f"V{rows.shape[1]}"), return_index=True)[1]] = True
        return np.flatnonzero(first | ~self.sha256.any(axis=1))


def _read_blobs(name: str, arrays: Mapping[str, Any], images: int) -> Blobs:
    data, ends = arrays[name], arrays[f"{name}.ends"]
    check_array(f"sources.{name}", data, np.uint8, (None,))
    items = None if name == "licence_names" else images
    check_array(f"sources.{name}.ends", ends, np.int64, (items,))
    return Blobs.from_arrays(f"sources.{name}", data, ends)


def _used(names: tuple[str, ...], numbers: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """The names that numbers [n] refer to, each once in order of appearance, and new numbers."""
    used, firsts = np.unique(numbers, return_index=True)
    renumbered = np.zeros(len(names), np.uint32)
    kept: dict[str, int] = {}
    for number in used[np.argsort(firsts)].tolist():
        renumbered[number] = kept.setdefault(names[number], len(kept))
    return tuple(kept), renumbered[numbers]


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
