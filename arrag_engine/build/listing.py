"""The pictures of a folder, with captions and facts from the files beside them."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..images import looks_like_picture, picture_suffixes
from ..settings import CROPS
from .sidecars import (
    CAPTIONS,
    MAX_CAPTION,
    TABLES,
    TextFile,
    TextReader,
    printable,
    read_table,
    sidecars_of,
)
from .walking import Place, walk

DATA = {
    *(
        ".txt",
        ".caption",
        ".json",
        ".jsonl",
        ".csv",
        ".tsv",
        ".md",
        ".xml",
        ".xmp",
        ".yaml",
        ".yml",
    ),
    *(".npz", ".npy", ".pt", ".safetensors", ".parquet", ".zip", ".tar", ".mp4", ".mov", ".webm"),
    *(".thm", ".bak", ".tmp", ".part", ".crdownload", ".lnk", ".url", ".html", ".py", ".log"),
}
"""Suffixes of files that are never opened as pictures: data, previews, partial downloads."""


@dataclass(frozen=True)
class ReadSettings:
    """How the pictures of a folder are read."""

    licence: str = ""
    """Of every picture whose metadata names none."""
    origin: str = ""
    """Of every picture whose metadata names none: where it comes from."""
    crops: str = "center"

    def __post_init__(self) -> None:
        if self.crops not in CROPS:
            raise InputError(f"crops is {self.crops!r}; choose one of {', '.join(CROPS)}")


class Picture(NamedTuple):
    """A picture file with its metadata."""

    path: str
    name: str
    """Path below the folder, with forward slashes."""
    caption: str
    licence: str
    origin: str


@dataclass
class Found:
    """The files of a folder and of all below it, each in its place."""

    pictures: list[TextFile] = field(default_factory=list)
    sidecars: dict[str, list[TextFile]] = field(default_factory=dict)
    """Caption files of each picture, by its name; the first that is not empty counts."""
    tables: list[TextFile] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Files that are nothing of these, by suffix."""
    hidden_files: int = 0
    hidden_folders: int = 0

    def add(self, place: Place, suffixes: set[str]) -> None:
        """Take a folder's files in.

        Args:
            suffixes: Of pictures.
        """
        self.hidden_files += place.hidden_files
        self.hidden_folders += place.hidden_folders
        # a folder with the name of a picture is listed, so that it is reported as unreadable
        pictures = [name for name in place.folders if _suffix(name) in suffixes]
        others, texts = [], {}
        for name in place.files:
            suffix = _suffix(name)
            known = suffix in suffixes or suffix in DATA
            if suffix in suffixes or (not known and looks_like_picture(_file(place, name).path)):
                pictures.append(name)
            elif name.lower() in TABLES:
                self.tables.append(_file(place, name))
            else:
                others.append(name)
                if suffix in CAPTIONS:
                    texts.setdefault(name.lower(), []).append(name)
        used = set()
        for name in pictures:
            file = _file(place, name)
            self.pictures.append(file)
            if texts and (beside := sidecars_of(name, texts)):
                self.sidecars[file.name] = [_file(place, text) for text in beside]
                used.update(beside)
        self.left_out.update(_suffix(name) for name in others if name not in used)

    def notes(self) -> list[str]:
        """What was left out, a line for each reason."""
        kinds = [f"{count} {s or 'without suffix'}" for s, count in sorted(self.left_out.items())]
        hidden = [
            f"{count} {what if count == 1 else what + 's'}"
            for count, what in ((self.hidden_folders, "folder"), (self.hidden_files, "file"))
            if count
        ]
        reasons = (("no pictures", kinds), ("hidden", hidden))
        return [f"left out because {why}: {', '.join(what)}" for why, what in reasons if what]


def list_folder(folder: Path, settings: ReadSettings) -> tuple[list[Picture], list[str]]:
    """The pictures anywhere under `folder` in name order, and what was left out or went wrong.

    The caption of `x.png` is the text of `x.txt`, `x.caption` or `x.png.txt`, in any case; failing
    that, it comes from a `metadata.jsonl` or `metadata.csv` in the same folder or above. Each JSON
    object or row has `file_name` (relative to that file) and `text` or `caption`, and perhaps
    `licence`, and `source` or `url`.

    Raises:
        InputError: The folder does not exist.
    """
    folder, notes = Path(folder), []
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    found, suffixes = Found(), picture_suffixes()
    for place in walk(str(folder), lambda error: notes.append(_complaint(folder, error))):
        found.add(place, suffixes)
    found.pictures.sort(key=lambda file: file.name.split("/"))
    reader, facts_of = TextReader(), {file.name: {} for file in found.pictures}
    for table in sorted(found.tables, key=_precedence):
        notes += read_table(table, reader.read([table])[0], facts_of)
    captions = _captions(found, reader)
    defaults = {"caption": "", "licence": settings.licence, "origin": settings.origin}
    pictures = []
    for file in found.pictures:
        facts = defaults | facts_of[file.name]
        facts["caption"] = captions.get(file.name) or facts["caption"]
        pictures.append(Picture(file.path, printable(file.name), **facts))
    return pictures, [*notes, *reader.notes(), *found.notes()]


def _captions(found: Found, reader: TextReader) -> dict[str, str]:
    """Captions from sidecars, by the names of the pictures."""
    files = sorted({f for beside in found.sidecars.values() for f in beside}, key=lambda f: f.name)
    texts = dict(zip(files, reader.read(files, MAX_CAPTION), strict=True))
    captions = {}
    for name, beside in found.sidecars.items():
        contents = (printable(texts[file].replace("\0", "")).strip() for file in beside)
        captions[name] = next(filter(None, contents), "")
    return captions


def _precedence(table: TextFile) -> tuple[int, str, int]:
    """The order in which tables are read: the one nearest to a picture overrides the others."""
    place, name = posixpath.split(table.name)
    return table.name.count("/"), place, TABLES.index(name.lower())


def _file(place: Place, name: str) -> TextFile:
    return TextFile(place.below + name, f"{place.path}{os.sep}{name}")


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def listing_state(pictures: Sequence[Picture]) -> str:
    """A hash that changes when a picture file or its metadata changes."""
    digest = hashlib.sha256()
    for picture in pictures:
        try:
            facts = os.stat(picture.path)
            stamp = (facts.st_size, facts.st_mtime_ns)
        except OSError:  # a link to nowhere
            stamp = ()
        digest.update(repr((picture[1:], stamp)).encode())
    return digest.hexdigest()


def _complaint(folder: Path, error: OSError) -> str:
    place = Path(error.filename or folder)
    name = place.relative_to(folder).as_posix() if place.is_relative_to(folder) else str(place)
    return f"{printable(name)}: {error.strerror or error}; it is ignored"
