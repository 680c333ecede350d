"""Lists of prompts: GenEval's metadata, DPG-Bench's folder, and any text, JSONL or CSV file.

A list is read and checked as a whole before anything is drawn. Loads without PyTorch.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..bounds import shown
from ..errors import InputError
from ..files import read_text
from ..models.tokenizing import check_prompt
from ..paths import check_file, check_folder, shown_path

COLUMNS = ("prompt", "caption", "text")
"""What holds the prompt of a JSONL object or a CSV row where no column is chosen, in this order."""
DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Entry:
    """A prompt of a list."""

    number: int
    """Its place in the list, from 0."""
    text: str
    where: str
    """Where it stands, for messages."""
    name: str = ""
    """What its picture is called; of a list of files."""
    record: dict[str, Any] = field(default_factory=dict)
    """What the list says of it besides."""


@dataclass(frozen=True)
class PromptList:
    """The prompts of a benchmark."""

    entries: tuple[Entry, ...]

    @property
    def digest(self) -> str:
        """Changes when a prompt, its place or its name does."""
        facts = [[entry.number, entry.name, entry.text, entry.record] for entry in self.entries]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def read_geneval(path: Path) -> PromptList:
    """The prompts of GenEval's `evaluation_metadata.jsonl`: objects with `tag` and `prompt`.

    Raises:
        InputError: The file cannot be read, or a line is none of these, with its number.
    """
    entries = []
    for number, (where, line) in enumerate(_lines(path)):
        record = _json(line, where)
        if not isinstance(record, dict) or not isinstance(record.get("tag"), str):
            raise InputError(
                f"{where} is not an object with 'tag' and 'prompt'; use GenEval's "
                "evaluation_metadata.jsonl"
            )
        text = _checked(record.get("prompt", ""), where)
        entries.append(Entry(number, text, where, record=record))
    return _complete(entries, path)


def read_dpg(folder: Path) -> PromptList:
    """The prompts of DPG-Bench's folder: one in each `.txt` file, in the order of the names.

    Raises:
        InputError: The folder cannot be read, has none, or a file holds no prompt.
    """
    files = sorted(check_folder(folder).glob("*.txt"), key=_natural)
    entries, names = [], {}
    for number, file in enumerate(files):
        where = shown_path(file)
        if "." in file.stem:  # the scorer takes a picture's name up to its first dot
            raise InputError(f"{where} has a dot in its name; rename it")
        if (twin := names.setdefault(file.stem.casefold(), file)) is not file:
            raise InputError(f"{where} and {twin.name} differ in capitals only; rename one")
        entries.append(Entry(number, _checked(_content(file).strip(), where), where, file.stem))
    if not entries:
        raise InputError(
            f"{shown_path(folder)} has no .txt files; use dpg_bench/prompts of the ELLA repository"
        )
    return PromptList(tuple(entries))


def read_prompts(path: Path, column: str | None = None) -> PromptList:
    """The prompts of a file: the lines of a text, the strings or objects of a `.jsonl`, the rows of
    a `.csv` or `.tsv` whose first row names the columns.

    Args:
        column: Of a row or object; the first of `COLUMNS` that is there when absent.

    Raises:
        InputError: The file cannot be read, or a line holds no prompt, with its number.
    """
    suffix = path.suffix.lower()
    if suffix in DELIMITERS:
        found = _rows(path, DELIMITERS[suffix], column)
    elif suffix in (".jsonl", ".json"):
        found = ((where, _value(_json(line, where), where, column)) for where, line in _lines(path))
    elif column is None:
        found = _lines(path)
    else:
        raise InputError(f"{shown_path(path)} is text without columns; omit the column {column!r}")
    entries = [
        Entry(number, _checked(text, where), where) for number, (where, text) in enumerate(found)
    ]
    return _complete(entries, path)


def _complete(entries: list[Entry], path: Path) -> PromptList:
    if not entries:
        raise InputError(f"{shown_path(path)} holds no prompt; write one a line")
    return PromptList(tuple(entries))


def _content(path: Path) -> str:
    try:
        return read_text(check_file(path))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{shown_path(path)} cannot be read as text ({str(error)[:80]}); save it in UTF-8"
        ) from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where, line) of each line, which only line feeds end; empty lines at the end are left out.

    Raises:
        InputError: An empty line stands before the last one: pictures are numbered by lines.
    """
    lines = [line.removesuffix("\r") for line in _content(path).removeprefix("\ufeff").split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, start=1):
        where = f"line {number} of {shown_path(path)}"
        if not line.strip():
            raise InputError(f"{where} is empty; remove it, or write a prompt")
        yield where, line


def _rows(path: Path, delimiter: str, column: str | None) -> Iterator[tuple[str, Any]]:
    """(where, prompt) of each row behind the first."""
    reader = csv.reader(io.StringIO(_content(path), newline=""), delimiter=delimiter, strict=True)
    rows = _numbered_rows(reader, path)
    _, names = next(rows, ("", []))
    chosen = _column([name.strip() for name in names], column, f"the first row of {path.name}")
    place = [name.strip() for name in names].index(chosen)
    empty = None
    for where, row in rows:
        if not any(cell.strip() for cell in row):
            empty = empty or where
            continue
        if empty is not None:
            raise InputError(f"{empty} is empty; remove it, or write a prompt")
        yield where, row[place] if place < len(row) else ""


def _numbered_rows(reader: Any, path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each row with the line on which it begins; a cell in quotes may have several lines."""
    before = 0
    try:
        for row in reader:
            yield f"line {before + 1} of {shown_path(path)}", row
            before = reader.line_num
    except csv.Error as error:
        raise InputError(
            f"line {reader.line_num} of {shown_path(path)} is not a row ({error}); write cells "
            "with quotes or line breaks in double quotes"
        ) from error


def _column(names: Iterable[str], column: str | None, where: str) -> str:
    """The name of the column that holds the prompts.

    Raises:
        InputError: There is none.
    """
    names = list(names)
    for wanted in COLUMNS if column is None else (column,):
        for name in names:
            if name == wanted or (column is None and name.casefold() == wanted):
                return name
    looked = repr(column) if column is not None else f"none of {', '.join(COLUMNS)}"
    listed = ", ".join(shown(name) for name in names[:8]) or "nothing"
    has = "lacks" if column is not None else "has"
    raise InputError(f"{where} {has} {looked}, it names {listed}; choose one with --column")


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({str(error)[:80]}); correct it") from error


def _value(record: Any, where: str, column: str | None) -> Any:
    """The prompt of a JSONL line: a string, or a field of an object."""
    if isinstance(record, dict):
        return record[_column(map(str, record), column, where)]
    return record


def _checked(text: Any, where: str) -> str:
    """The prompt, unchanged.

    Raises:
        InputError: It is none, or too long.
    """
    return at(where, lambda: check_prompt(text))


def at(where: str, call: Callable[[], Any]) -> Any:
    """What a call returns; the message of what it refuses begins with the place of the prompt.

    Raises:
        InputError: It refuses something.
    """
    try:
        return call()
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorts 9 before 10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.stem)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
