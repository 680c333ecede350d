"""`add`, `remove`, `merge`, `export-sources`, `check`: an index after it was built."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import shipped
from ..errors import InputError
from ..files import atomic_write
from ..index import (
    Patches,
    PatchIndex,
    SearchChoice,
    SourceTable,
    add_patches,
    check_index,
    is_manifest,
    load_index,
    merge_indexes,
    open_lookup,
    read_manifest,
    remove_pictures,
    save_index,
)
from ..locks import locked
from ..paths import check_output, given_name
from .build import add_reading_flags, print_report, read_settings
from .progress import Bars
from .shared import Command, add_model_flags, add_search_flags, check_inputs, load_model

if TYPE_CHECKING:
    from ..build import Report

COLUMNS = (
    *("number", "name", "caption", "licence", "origin", "width", "height"),
    *("left", "top", "right", "bottom", "sha256"),
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a formula in a spreadsheet."""


class NothingNew(Exception):
    """The index stays as it is."""


def add_commands(command: Command) -> None:
    sub = command(add)
    _add_edited_index(sub)
    sub.add_argument("--images", required=True, type=Path, help="folder of pictures")
    add_reading_flags(sub)
    add_model_flags(sub)
    add_search_flags(sub)

    sub = command(remove)
    _add_edited_index(sub)
    for name in ("source", "licence", "caption"):
        sub.add_argument(
            f"--{name}",
            metavar="PATTERN",
            check=given_name,
            help=f"{name}s to remove: a part, or the whole with * and ? (default: none)",
        )
    add_search_flags(sub)

    sub = command(merge)
    sub.add_argument("indexes", nargs="+", metavar="INDEX", help="path or shipped name (pocket)")
    sub.add_argument("--out", required=True, type=Path, help="index file to write (.safetensors)")
    add_search_flags(sub)

    sub = command(export_sources)
    sub.add_argument("index", metavar="INDEX", help="path or shipped name (pocket)")
    sub.add_argument("--out", required=True, type=Path, help="table to write (.csv)")

    command(check).add_argument("index", metavar="INDEX", help="path or shipped name (pocket)")


def _add_edited_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="path or shipped name (pocket)")
    parser.add_argument("--out", type=Path, help="file to write (default: INDEX is changed)")


def add(a: argparse.Namespace) -> int:
    """Add a folder of pictures to an index; what it already has is skipped."""
    path, out = _edited(a)
    search = _search(a)
    check_inputs(a)
    from ..build import encode_folder

    model = load_model(a).model

    def grown() -> PatchIndex:
        index = load_index(path)
        index.check_fits(model.config.grid, model.vq.codebook(model.device))
        with Bars() as bars:
            encoded = encode_folder(
                model,
                a.images,
                read_settings(a),
                known=index.sources.names_by_hash(),
                keep_vectors=index.spec.space == "encoder",
                progress=partial(bars, "picture"),
            )
            print_report(encoded.report)
            if not len(encoded.tokens):
                sentence = _nothing_new(a, encoded.report)
                if out == path:
                    raise NothingNew(sentence)
                print(sentence)
                return index
            sources = SourceTable.from_sources(encoded.sources)
            more = Patches(encoded.tokens, encoded.vectors, sources)
            return add_patches(index, more, search, partial(bars, "patch"))

    try:
        _replace(out, grown)
    except NothingNew as sentence:
        print(sentence)
    return 0


def _nothing_new(a: argparse.Namespace, report: Report) -> str:
    """The message about a folder that adds nothing.

    Raises:
        InputError: It has no readable picture at all.
    """
    if not report.duplicates:
        raise InputError(f"{a.images} holds no readable picture")
    return f"{a.index} has all {len(report.duplicates)} readable pictures of {a.images} already"


def remove(a: argparse.Namespace) -> int:
    """Remove the pictures whose source, licence or caption matches a pattern."""
    path, out = _edited(a)
    patterns = {("name", "origin"): a.source, ("licence",): a.licence, ("caption",): a.caption}
    if not any(patterns.values()):
        raise InputError("no pattern is given; pass --source, --licence or --caption")
    search = _search(a)

    def rest() -> PatchIndex:
        index = load_index(path)
        hits = [index.sources.matching(p, f) for f, p in patterns.items() if p]
        pictures = np.unique(np.concatenate(hits))
        if len(pictures) == 0:
            raise InputError(f"none of the {len(index.tokens)} pictures of {path} matches")
        with Bars() as bars:
            left = remove_pictures(index, pictures, search, partial(bars, "patch"))
        print(f"{len(pictures)} of {len(index.tokens)} pictures go")
        return left

    _replace(out, rest)
    return 0


def merge(a: argparse.Namespace) -> int:
    """Make one index of several of the same VQ, keyed like the first."""
    out = check_output(a.out, ".safetensors")
    paths = [shipped.resolve(name, shipped.INDEXES) for name in a.indexes]
    search = _search(a)

    def merged() -> PatchIndex:
        indexes = [load_index(path) for path in paths]
        with Bars() as bars:
            return merge_indexes(indexes, list(map(str, paths)), search, partial(bars, "patch"))

    _replace(out, merged)
    return 0


def export_sources(a: argparse.Namespace) -> int:
    """Write a table of an index's pictures: names, captions, licences, sizes, hashes, origins."""
    out = check_output(a.out, ".csv")
    sources = load_index(shipped.resolve(a.index, shipped.INDEXES)).sources
    with atomic_write(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for number, s in enumerate(sources):
            texts = [_cell(text) for text in (s.name, s.caption, s.licence, s.origin)]
            table.writerow([number, *texts, s.width, s.height, *s.crop, s.sha256])
    print(f"{out}: {len(sources)} rows")
    return 0


def check(a: argparse.Namespace) -> int:
    """Check every byte and value of an index, more than loading it does."""
    path = shipped.resolve(a.index, shipped.INDEXES)
    files, failed = [path], []
    if is_manifest(path):
        manifest = read_manifest(path)
        files = [manifest.place(shard) for shard in manifest.shards]
        open_lookup(path)
    with Bars() as bars:
        for file in files:
            if len(files) > 1:
                print(file)
            for finding in check_index(file, lambda step: partial(bars, step)):
                print(finding)
                if finding.problem:
                    failed.append(finding.name)
    if failed:
        raise InputError(f"{path} is damaged ({', '.join(failed[:5])}); copy or build it again")
    return 0


def _edited(a: argparse.Namespace) -> tuple[Path, Path]:
    """(index to read, file to write)."""
    path = shipped.resolve(a.index, shipped.INDEXES)
    if a.out is None and path.parent == shipped.INDEXES:
        raise InputError(
            f"{a.index} is part of the program and cannot be changed; pass an --out file"
        )
    return path, check_output(a.out or path, ".safetensors")


def _search(a: argparse.Namespace) -> SearchChoice:
    return SearchChoice(a.structure, a.recall_target)


def _cell(text: str) -> str:
    """The text, marked as text where a spreadsheet would compute it."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _replace(out: Path, make: Callable[[], PatchIndex]) -> None:
    """Write a new index, where an old one may be replaced.

    The old file is no longer mapped when the new one replaces it, as Windows requires.

    Raises:
        InputError: Another program is writing `out`, or has written it meanwhile; what it did would
            be lost.
    """
    with locked(out):
        before = _state(out)
        with atomic_write(out) as temporary:
            summary = _save(make(), temporary)
            if _state(out) != before:
                raise InputError(f"{out} was changed by another program meanwhile; run this again")
    print(f"{out}: {summary}")


def _state(path: Path) -> tuple[int, ...]:
    """Facts that change when a file is written to; empty if there is none."""
    if not path.exists():
        return ()
    facts = path.stat()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _save(index: PatchIndex, path: Path) -> str:
    """Write an index; returns a summary."""
    save_index(index, path)
    return (
        f"{len(index.tokens)} pictures, {index.size} patches, "
        f"{index.searcher.kind} search, recall {index.recall:.3f}"
    )
