"""The finished part of a build, beside its output: a killed build resumes where it stopped.

The folder `.NAME.building` holds the codes and vectors of all encoded crops as plain arrays that
only ever grow, and a journal with one line a batch: its sources, its report and a checksum of its
rows. A batch counts once its line is complete and its rows match; anything after it is cut off.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import InputError
from ..files import write_text
from ..index import Source
from ..locks import locked
from .encoding import Encoded, Report

MANIFEST, JOURNAL = "manifest.json", "journal.jsonl"
TOKENS, VECTORS, OUTPUT = "tokens.bin", "vectors.bin", "index"


class Staging:
    """The batches of one build that are done; made by `open_staging`."""

    def __init__(self, folder: Path, size: int, dim: int | None) -> None:
        self.folder = folder
        self.size = size
        self.dim = dim
        self.rows = 0
        """Encoded crops."""
        self.seen: dict[str, str] = {}
        """Names by sha256 of the pictures that are in."""
        self.report = Report()

    def append(self, part: Encoded) -> None:
        """Write a batch down.

        Raises:
            InputError: The disk is full, or cannot be written to.
        """
        codes = part.tokens.tobytes()
        units = b"" if part.vectors is None else part.vectors.tobytes()
        entry = {
            "rows": len(part.tokens),
            "checksum": zlib.crc32(units, zlib.crc32(codes)),
            "sources": [_to_json(source) for source in part.sources],
            "report": asdict(part.report),
        }
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        try:
            _append(self.folder / TOKENS, codes)
            _append(self.folder / VECTORS, units)
            _append(self.folder / JOURNAL, line)
        except OSError as error:
            raise InputError(
                f"cannot write to {self.folder}: {error.strerror}; free some space and build "
                f"again, {self.report.listed} pictures are done already"
            ) from error
        self._count(entry)

    def all(self) -> Encoded:
        """All batches; codes and vectors stay on disk, sources are read one by one."""
        tokens = np.memmap(self.folder / TOKENS, np.uint16, "r", shape=(self.rows, self.size))
        vectors = None
        if self.dim is not None:
            shape = (self.rows, self.size, self.dim)
            vectors = np.memmap(self.folder / VECTORS, np.float32, "r", shape=shape)
        return Encoded(tokens, vectors, self._sources(), self.report)

    def _sources(self) -> Iterator[Source]:
        with (self.folder / JOURNAL).open("rb") as journal:
            for line in journal:
                yield from map(_from_json, json.loads(line)["sources"])

    @contextmanager
    def output(self, out: Path) -> Iterator[Path]:
        """A path whose file becomes `out` when the block ends. A killed build leaves it in the
        folder, which is deleted with it.

        Raises:
            InputError: `out` cannot be written.
        """
        path = self.folder / OUTPUT
        yield path
        try:
            path.replace(out)
        except OSError as error:
            raise InputError(
                f"cannot write {out}: {error.strerror}; choose another name"
            ) from error

    def take_up(self) -> None:
        """Count the complete batches of an earlier build and cut off the incomplete one."""
        whole = 0
        self.clear({MANIFEST, JOURNAL, TOKENS, VECTORS})
        paths = [self.folder / name for name in (JOURNAL, TOKENS, VECTORS)]
        for path in paths:
            path.touch()
        journal, tokens, vectors = (path.open("rb") for path in paths)
        with journal, tokens, vectors:
            for line in journal:
                entry = self._read_entry(line, tokens, vectors)
                if entry is None:
                    break
                self._count(entry)
                whole += len(line)
        os.truncate(paths[0], whole)
        os.truncate(paths[1], self.rows * self.size * 2)
        os.truncate(paths[2], self.rows * self.size * 4 * (self.dim or 0))

    def clear(self, keep: Set[str] = frozenset()) -> None:
        """Delete all files but those to keep."""
        for path in self.folder.iterdir():
            if path.name not in keep:
                path.unlink()

    def _count(self, entry: dict[str, Any]) -> None:
        report = Report(**entry["report"])
        report.duplicates = [
            (name, first) for name, first in report.duplicates
        ]  # JSON has no pairs
        report.unreadable = [(name, reason) for name, reason in report.unreadable]
        self.rows += entry["rows"]
        self.report.add(report)
        self.seen |= {source["sha256"]: source["name"] for source in entry["sources"]}

    def _read_entry(
        self, line: bytes, tokens: BinaryIO, vectors: BinaryIO
    ) -> dict[str, Any] | None:
        """A line of the journal if it and its rows are complete."""
        try:
            entry = json.loads(line)
            codes = tokens.read(entry["rows"] * self.size * 2)
            units = vectors.read(entry["rows"] * self.size * 4 * (self.dim or 0))
            whole = zlib.crc32(units, zlib.crc32(codes)) == entry["checksum"]
        except (ValueError, KeyError, TypeError):
            return None
        return entry if whole and line.endswith(b"\n") else None


@contextmanager
def open_staging(
    out: Path,
    size: int,
    dim: int | None,
    identity: dict[str, str],
    fresh: bool,
    say: Callable[[str], object],
) -> Iterator[Staging]:
    """The staging folder of the index `out`, locked; deleted when the block ends without an error.

    Args:
        size: Codes of a token grid.
        dim: Numbers of a vector; absent where none are kept.
        identity: Facts that a resumed build must share with the one that was killed.
        fresh: Start from the beginning in any case.
        say: Called with a sentence when there was an earlier build.

    Raises:
        InputError: Another program is writing `out`, or the folder cannot be written to.
    """
    folder = out.parent / f".{out.name}.building"
    with locked(out):
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot write {out}: {error.strerror}; choose another folder"
            ) from error
        staging = Staging(folder, size, dim)
        try:
            try:
                _agree(staging, identity, fresh, say)
            except OSError as error:
                raise InputError(f"cannot use {folder}: {error.strerror}; delete it") from error
            yield staging
        except BaseException:
            if not staging.rows:  # nothing to go on with
                _remove(staging)
            raise
        _remove(staging)


def _remove(staging: Staging) -> None:
    """Take the folder away."""
    with suppress(OSError):
        staging.clear()
        staging.folder.rmdir()


def _agree(
    staging: Staging, identity: dict[str, str], fresh: bool, say: Callable[[str], object]
) -> None:
    manifest = staging.folder / MANIFEST
    before: Any = None
    with suppress(OSError, ValueError):  # killed before it was written
        before = json.loads(manifest.read_text(encoding="utf-8"))
    if before == identity and not fresh:
        staging.take_up()
        if staging.report.listed:
            say(f"going on after {staging.report.listed} pictures that an earlier build has done")
        return
    if isinstance(before, dict) and not fresh:
        changed = [name for name, value in identity.items() if before.get(name) != value]
        say(f"starting afresh: {' and '.join(changed)} changed since the build that was stopped")
    staging.clear()
    staging.take_up()
    write_text(manifest, json.dumps(identity))


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def _to_json(source: Source) -> dict[str, Any]:
    return asdict(source) | {"thumbnail": base64.b64encode(source.thumbnail).decode()}


def _from_json(entry: dict[str, Any]) -> Source:
    crop: Any = tuple(entry["crop"])
    return Source(**entry | {"thumbnail": base64.b64decode(entry["thumbnail"]), "crop": crop})
