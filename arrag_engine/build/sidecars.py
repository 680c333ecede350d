"""Texts beside pictures: captions, and tables of them."""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from .encodings import guess_encodings, plain_text

TABLES = ("metadata.csv", "metadata.jsonl")
"""Files about several pictures; later ones override earlier ones."""
CAPTIONS = (".txt", ".caption")
FIELDS = {
    "caption": ("text", "caption"),
    "licence": ("licence", "license"),
    "origin": ("source", "url"),
}
"""Facts that an entry of a table may have, and their field names."""
MAX_CAPTION = 2**16

Facts = dict[str, dict[str, str]]
"""Facts of each picture, by its path below the folder."""


class TextFile(NamedTuple):
    """A file of text."""

    name: str
    """Path below the folder, with forward slashes."""
    path: str


class TextReader:
    """Reads text files of a folder and collects notes about unreadable or guessed ones."""

    def __init__(self) -> None:
        self._complaints: list[str] = []
        self._guessed: dict[str, list[str]] = {}

    def read(self, files: Sequence[TextFile], limit: int | None = None) -> list[str]:
        """The text of each file; none of those that cannot be read or have more bytes."""
        contents = [self._content(file, limit) for file in files]
        texts = [plain_text(content) for content in contents]
        unclear = [i for i, text in enumerate(texts) if text is None]
        guesses = guess_encodings([contents[i] for i in unclear])
        for i, encoding in zip(unclear, guesses, strict=True):
            texts[i] = contents[i].decode(encoding, errors="replace")
            self._guessed.setdefault(encoding, []).append(files[i].name)
        return [text or "" for text in texts]

    def notes(self) -> list[str]:
        """Problems and guesses, a line each."""
        guesses = [
            f"{len(names)} {'text is' if len(names) == 1 else 'texts are'} not UTF-8 and read as "
            f"{encoding}, the most probable encoding; the first is {printable(names[0])}"
            for encoding, names in sorted(self._guessed.items())
        ]
        return self._complaints + guesses

    def _content(self, file: TextFile, limit: int | None) -> bytes:
        try:
            facts = os.stat(file.path)
            if not stat.S_ISREG(facts.st_mode):  # a pipe would never end
                why = "not a file"
            elif limit is not None and facts.st_size > limit:
                why = f"{facts.st_size} bytes are too long for a caption; at most {limit}"
            else:
                with open(file.path, "rb", buffering=0) as opened:
                    return opened.readall()
        except OSError as error:
            why = error.strerror or str(error)
        self._complaints.append(f"{printable(file.name)}: {why}; it is ignored")
        return b""


def sidecars_of(picture: str, texts: dict[str, list[str]]) -> list[str]:
    """Names of the caption files of a picture; the first that is not empty counts.

    Args:
        texts: Names of the folder's caption files by their names in lower case.
    """
    stem, found = picture.rpartition(".")[0] or picture, []
    for wanted in (*(stem + suffix for suffix in CAPTIONS), picture + CAPTIONS[0]):
        same = texts.get(wanted.lower(), [])
        found += [wanted] if wanted in same else same
    return found


def read_table(file: TextFile, text: str, facts_of: Facts) -> list[str]:
    """Add the facts of a table to `facts_of`; returns a note for each invalid line."""
    folder = posixpath.dirname(file.name)
    entries = _rows(text) if file.name.lower().endswith(".csv") else _lines(text)
    notes = []
    try:
        for number, entry in entries:
            try:
                file_name, facts = _facts(entry())
                facts_of[_picture_of(folder, file_name, facts_of)] |= facts
            except (ValueError, RecursionError) as error:
                where = f"{printable(file.name)} line {number}"
                notes.append(f"{where}: {printable(str(error))}; the line is ignored")
    except csv.Error as error:
        notes.append(f"{printable(file.name)}: {error}; the rest of it is ignored")
    return notes


def printable(text: str) -> str:
    """The text with lone surrogates replaced: a file name need not be valid text."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _picture_of(folder: str, file_name: str, facts_of: Facts) -> str:
    """The picture that a table names; tables written on Windows have backslashes.

    Raises:
        ValueError: It is not among the pictures.
    """
    for name in (file_name, file_name.replace("\\", "/")):
        path = posixpath.join(folder, name)
        normal = posixpath.normpath(path)
        if normal in facts_of and ".." not in path.split("/"):
            return normal
    raise ValueError(f"{file_name!r} is not among the pictures")


Entries = Iterator[tuple[int, Callable[[], Any]]]
"""Numbers of lines, and what reads each."""


def _lines(text: str) -> Entries:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, lambda line=line: _from_json(line)


def _from_json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error


def _rows(text: str) -> Entries:
    """Of a table with commas, or with semicolons or tabs, as some spreadsheets write it."""
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restkey="")
    for row in table:
        filled = {key: value for key, value in row.items() if value}
        yield table.line_num, lambda filled=filled: filled


def _facts(entry: Any) -> tuple[str, dict[str, str]]:
    """(file name, facts) of one entry.

    Raises:
        ValueError: No object, no file name, or something that should be text is not.
    """
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
