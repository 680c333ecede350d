"""Which pictures a folder holds, and what is said about them beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..images import list_pictures
from ..settings import CROPS

METADATA = "metadata.jsonl"
FIELDS = {
    "caption": ("text", "caption"),
    "licence": ("licence", "license"),
    "origin": ("source", "url"),
}
"""What a line of metadata may say, and under which names."""
MAX_CAPTION = 2**16


@dataclass(frozen=True)
class ReadSettings:
    """How the pictures of a folder are read."""

    licence: str = ""
    """Of every picture whose metadata names none."""
    origin: str = ""
    """Where pictures come from whose metadata does not say it."""
    crops: str = "center"

    def __post_init__(self) -> None:
        if self.crops not in CROPS:
            raise InputError(f"crops is {self.crops!r}; choose one of {', '.join(CROPS)}")


@dataclass(frozen=True)
class Picture:
    """A picture file and what is said about it."""

    path: Path
    name: str
    """Path below the folder, with forward slashes."""
    caption: str
    licence: str
    origin: str


def list_folder(folder: Path, settings: ReadSettings) -> tuple[list[Picture], list[str]]:
    """The pictures anywhere under `folder` in name order, and what went wrong around them.

    The caption of `x.png` is the text of `x.txt`; failing that, what a `metadata.jsonl` in the
    same folder or above says: one JSON object a line with `file_name` (relative to that file) and
    `text` or `caption`, and perhaps `licence`, and `source` or `url`.

    Raises:
        InputError: The folder does not exist.
    """
    folder, notes = Path(folder), []
    paths = list_pictures(folder, lambda error: notes.append(_complaint(folder, error)))
    told: dict[Path, dict[str, str]] = {path: {} for path in paths}
    places = {place for path in paths for place in path.parents if place.is_relative_to(folder)}
    for place in sorted(places, key=lambda p: (len(p.parts), p)):  # the nearest has the last word
        notes += _read_metadata(folder, place / METADATA, told)
    defaults = {"caption": "", "licence": settings.licence, "origin": settings.origin}
    pictures = []
    for path in paths:
        facts = defaults | told[path]
        try:
            facts["caption"] = _sidecar(path.with_suffix(".txt")) or facts["caption"]
        except (OSError, InputError) as error:
            notes.append(_complaint(folder, error, path.with_suffix(".txt")))
        name = path.relative_to(folder).as_posix()
        pictures.append(Picture(path, printable(name), **facts))
    return pictures, notes


def listing_state(pictures: Sequence[Picture]) -> str:
    """A hash that changes when a picture file does, or what is said about it."""
    digest = hashlib.sha256()
    for picture in pictures:
        try:
            facts = picture.path.stat()
            stamp = (facts.st_size, facts.st_mtime_ns)
        except OSError:  # a link to nowhere
            stamp = ()
        told = (picture.name, picture.caption, picture.licence, picture.origin)
        digest.update(json.dumps((told, stamp)).encode())
    return digest.hexdigest()


def printable(text: str) -> str:
    """The text with what no encoding can hold replaced: a file name need not be text."""
    return text.encode(errors="replace").decode()


def _sidecar(path: Path) -> str:
    if not path.is_file():
        return ""
    if (size := path.stat().st_size) > MAX_CAPTION:
        raise InputError(f"{size} bytes are too long for a caption; at most {MAX_CAPTION}")
    return path.read_text(encoding="utf-8-sig", errors="replace").strip()


def _read_metadata(folder: Path, file: Path, told: dict[Path, dict[str, str]]) -> list[str]:
    """Add what a metadata file says to `told`; returns what is wrong with it."""
    if not file.is_file():
        return []
    notes = []
    try:
        lines = file.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    except OSError as error:
        return [_complaint(folder, error, file)]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            file_name, facts = _read_line(line)
            path = file.parent / file_name
            if path not in told:
                raise ValueError(f"{file_name!r} is not among the pictures")
            told[path] |= facts
        except (ValueError, RecursionError) as error:
            where = printable(file.relative_to(folder).as_posix())
            notes.append(f"{where} line {number}: {printable(str(error))}; the line is ignored")
    return notes


def _read_line(line: str) -> tuple[str, dict[str, str]]:
    """(file name, facts) of one line.

    Raises:
        ValueError: No JSON object, no file name, or something that should be text is not.
    """
    try:
        entry: Any = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise ValueError("not an object with a file_name")
    facts = {}
    for field, names in FIELDS.items():
        for name in names:
            value = entry.get(name)
            if value is None:
                continue
            if not isinstance(value, str):
                raise ValueError(f"{name} is not text")
            if len(value) > MAX_CAPTION:
                raise ValueError(
                    f"{name} has {len(value)} characters, at most {MAX_CAPTION} are allowed"
                )
            facts.setdefault(field, printable(value.strip()))
    return entry["file_name"], facts


def _complaint(folder: Path, error: Exception, path: Path | None = None) -> str:
    place = Path(path or getattr(error, "filename", None) or folder)
    name = place.relative_to(folder).as_posix() if place.is_relative_to(folder) else str(place)
    return f"{printable(name)}: {getattr(error, 'strerror', None) or error}; it is ignored"
