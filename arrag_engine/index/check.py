"""Full validation of an index file: everything that loading does not check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from .container import FINGERPRINT, HASH, TensorFile, fingerprint, pieces
from .file import load_index, open_index
from .keys import Keys
from .patch_index import PatchIndex
from .search.flat import exact_index
from .sources import SourceTable
from .thumbnails import open_thumbnail

Progress = Callable[[int, int], None]
QUERIES = 32
NEIGHBORS = 64
RECALL_MARGIN = 0.1
"""How much lower than at build time the recall of a few queries may come out by chance."""
ROUNDING = 1e-5


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    problem: str = ""
    """Empty if all is well."""
    note: str = ""

    def __str__(self) -> str:
        if self.problem:
            return f"FAILED {self.name}: {self.problem}"
        return f"ok     {self.name}" + (f" ({self.note})" if self.note else "")


def check_index(path: Path, progress: Callable[[str], Progress]) -> Iterator[Finding]:
    """Run every check on an index file.

    Args:
        progress: Takes the unit that a long step counts; returns a function of (done, in all).

    Raises:
        InputError: The file cannot even be loaded.
    """
    index, file = load_index(path), open_index(path)
    yield Finding("structure", note=f"{len(index.tokens)} pictures, {index.size} patches")
    yield from _check_hashes(file, progress("tensor"))
    yield from _check_numbers(file)
    yield _check_texts(index.sources)
    yield _check_thumbnails(index.sources, progress("thumbnail"))
    yield _check_recall(index, progress("patch"))


def _check_hashes(file: TensorFile, progress: Progress) -> Iterator[Finding]:
    promised = {n.removeprefix(HASH): v for n, v in file.header.items() if n.startswith(HASH)}
    found = file.hashes(progress)
    for name in sorted(promised.keys() | found.keys()):
        if name not in found or name not in promised:
            yield Finding(f"hash of {name}", "only one of the tensor and its hash is there")
        elif found[name] != promised[name]:
            yield Finding(f"hash of {name}", "its bytes have changed since it was written")
        else:
            yield Finding(f"hash of {name}")
    facts = {
        name: value
        for name, value in file.header.items()
        if not name.startswith(HASH) and name != FINGERPRINT
    }
    same = fingerprint(facts, promised) == file.header[FINGERPRINT]
    yield Finding("fingerprint", "" if same else "the header has changed since it was written")


def _check_numbers(file: TensorFile) -> Iterator[Finding]:
    for name in file.names:
        array = file.tensor(name)
        if array.dtype.kind == "f":
            finite = all(np.isfinite(piece).all() for piece in pieces(array.reshape(-1)))
            yield Finding(f"numbers of {name}", "" if finite else "some are NaN or infinite")


def _check_texts(sources: SourceTable) -> Finding:
    for field, column in sources.text_columns.items():
        for i, data in enumerate(column):
            try:
                data.decode()
            except UnicodeDecodeError:
                return Finding("texts", f"the {field} of picture {i} is no UTF-8")
    return Finding("texts")


def _check_thumbnails(sources: SourceTable, progress: Progress) -> Finding:
    bad, missing = [], 0
    for i, data in enumerate(sources.thumbnails):
        missing += not data
        try:
            if data:
                open_thumbnail(data)
        except ValueError as error:
            bad.append(f"picture {i} is {error}")
        progress(i + 1, len(sources))
    more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
    note = f"{missing} pictures have none" if missing else ""
    return Finding("thumbnails", bad[0] + more if bad else "", note)


def _check_recall(index: PatchIndex, progress: Progress) -> Finding:
    """Recall of queries made of stored tokens, as a drawing makes them, against exact search."""
    if index.spec.space == "encoder" and index.vectors is None:
        return Finding("recall", note="not measured, for the exact keys were not kept")
    k = min(NEIGHBORS, index.size)
    patches = np.linspace(0, index.size - 1, min(QUERIES, index.size)).astype(np.int64)
    queries = _keys(index, "codebook").rows(patches)
    keys = _keys(index, index.spec.space)
    nearest = np.empty((len(queries), 0), np.float32)
    for first, chunk in keys.chunks():
        near = exact_index(keys.dim, [chunk]).search(queries, min(k, len(chunk)))[0]
        nearest = np.sort(np.concatenate((nearest, near), axis=1), axis=1)[:, :k]
        progress(first + len(chunk), index.size)
    ids = index.numbers(index.lookup(queries, k))
    distances = ((keys.rows(np.maximum(ids, 0)) - queries[:, None]) ** 2).sum(axis=-1)
    recall = float(((distances <= nearest[:, -1:] + ROUNDING) & (ids >= 0)).mean())
    promised = index.recall
    facts = f"{recall:.3f} of the nearest {k} are found"
    if recall < promised - RECALL_MARGIN:
        return Finding("recall", f"{facts}, {promised:.3f} were when it was built")
    return Finding("recall", note=facts)


def _keys(index: PatchIndex, space: Literal["encoder", "codebook"]) -> Keys:
    spec = replace(index.spec, space=space)
    return Keys(index.tokens, index.vectors, index.codebook, index.grid, spec)
