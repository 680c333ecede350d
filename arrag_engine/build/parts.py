"""A build in parts: spans of the sorted list of pictures, encoded by themselves, here or on the
machines of a cluster.

A part is a file that is written completely or not at all, and never made again by a build of the
same pictures and settings. Parts know nothing of each other: a picture that is in an earlier part
too is left out when they are put together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoints import load_checkpoint, resolve_dtype
from ..errors import InputError
from ..index import PatchIndex, SourceTable, create_index, is_index, save_index
from ..index.container import TensorFile, write_tensors
from ..index.keys import KeySpec
from ..models.families import ImageModel
from .encoding import Encoded, Report, encode_all, join
from .listing import Picture
from .reading import BATCH, prepare_file, read_ahead

FORMAT = "arrag-part"
PICTURES = 128 * BATCH
"""Of a part: some minutes of a CPU, seconds of a GPU."""
SOURCES = "sources."


@dataclass(frozen=True)
class Part:
    """Pictures to encode, and where what they become is written; a cluster passes it on."""

    model: Path
    """The checkpoint, under the same path on every machine."""
    folder: Path
    pictures: tuple[Picture, ...]
    crops: str
    keep_vectors: bool
    path: Path
    identity: str
    """What parts of the same build share."""


def split(
    model: Path,
    folder: Path,
    pictures: Sequence[Picture],
    crops: str,
    keep_vectors: bool,
    place: Path,
    identity: Mapping[str, str],
) -> list[Part]:
    """The parts of a build, to be written into the folder `place`."""
    text = json.dumps(dict(identity), sort_keys=True)
    spans = [tuple(pictures[i : i + PICTURES]) for i in range(0, len(pictures), PICTURES)]
    return [
        Part(model, folder, span, crops, keep_vectors, place / f"part-{i:06d}.safetensors", text)
        for i, span in enumerate(spans)
    ]


def encode_part(part: Part) -> int:
    """Encode the pictures of a part and write it, unless that is done; returns their number.

    Raises:
        InputError: The folder has disappeared, or the part cannot be written.
    """
    if not is_done(part):
        model, device = _model(part.model)
        prepare = partial(prepare_file, frame=model.frame, crops=part.crops)
        batches = read_ahead(part.folder, part.pictures, prepare)
        encoded = encode_all(model, batches, {}, part.keep_vectors, device, lambda done: None)
        write_part(part, join(encoded, model, part.keep_vectors))
    return len(part.pictures)


@cache
def _model(path: Path) -> tuple[ImageModel, torch.device]:
    """The model at a path, loaded once by a process, and where it computes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load_checkpoint(path, resolve_dtype("auto", device)).model.to(device), device


def is_done(part: Part) -> bool:
    """Whether the part was written by a build with the same identity."""
    try:
        header = TensorFile(part.path, "part").header
    except InputError:
        return False
    return (header.get("format"), header.get("identity")) == (FORMAT, part.identity)


def write_part(part: Part, encoded: Encoded) -> None:
    sources = SourceTable.from_sources(encoded.sources)
    tensors: dict[str, Any] = {"tokens": encoded.tokens}
    if encoded.vectors is not None:
        tensors["vectors"] = encoded.vectors
    tensors |= {f"{SOURCES}{name}": array for name, array in sources.arrays().items()}
    header = {"format": FORMAT, "identity": part.identity}
    write_tensors(part.path, tensors, header | {"report": json.dumps(asdict(encoded.report))})


def read_part(path: Path) -> tuple[np.ndarray, np.ndarray | None, SourceTable, Report]:
    """(codes, vectors, sources, report) of a part."""
    file = TensorFile(path, "part")
    names = [name for name in file.names if name.startswith(SOURCES)]
    tokens = file.in_memory("tokens")
    columns = {name.removeprefix(SOURCES): file.in_memory(name) for name in names}
    vectors = file.in_memory("vectors") if "vectors" in file.names else None
    report = Report(**json.loads(file.header["report"]))
    report.duplicates = [(name, first) for name, first in report.duplicates]
    report.unreadable = [(name, reason) for name, reason in report.unreadable]
    return tokens, vectors, SourceTable.from_arrays(columns, len(tokens)), report


def read_parts(paths: Iterable[Path], seen: dict[str, str]) -> Iterator[tuple[np.ndarray, Encoded]]:
    """(rows that are kept, what they hold) of each part in order.

    Args:
        seen: Name by sha256 of what is in already; such pictures are left out, others are added.
    """
    for path in paths:
        tokens, vectors, sources, report = read_part(path)
        rows, own = _first_rows(sources, report, seen)
        kept = None if vectors is None else vectors[rows]
        yield rows, Encoded(tokens[rows], kept, list(sources.take(rows)), own)


def _first_rows(
    sources: SourceTable, report: Report, seen: dict[str, str]
) -> tuple[np.ndarray, Report]:
    """(rows of pictures that no part before has, the report of what is added by them)."""
    rows: list[int] = []
    own: dict[str, str] = {}
    later: list[tuple[str, str]] = []
    captioned = 0
    for row, source in enumerate(sources):
        if source.sha256 in seen:
            if source.sha256 not in own and (source.name, seen[source.sha256]) not in later:
                later.append((source.name, seen[source.sha256]))
                captioned += bool(source.caption)
            continue
        own[source.sha256] = source.name
        rows.append(row)
    seen |= own
    changed = replace(
        report,
        pictures=report.pictures - len(later),
        captioned=report.captioned - captioned,
        duplicates=[*report.duplicates, *later],
    )
    return np.array(rows, np.int64), changed


@dataclass(frozen=True)
class ShardOrder:
    """A shard to make of some parts; a cluster passes it on."""

    parts: tuple[tuple[Path, np.ndarray], ...]
    """Files, and the rows of each that are kept."""
    codebook: np.ndarray
    grid: Any
    spec: KeySpec
    structure: str
    recall_target: float
    path: Path

    @property
    def rows(self) -> int:
        return sum(len(rows) for _, rows in self.parts)


def make_shard(order: ShardOrder) -> None:
    """Write a shard, unless that is done."""
    if is_index(order.path):
        return
    tokens, vectors, tables = [], [], []
    for path, rows in order.parts:
        its_tokens, its_vectors, sources, _ = read_part(path)
        tokens.append(its_tokens[rows])
        tables.append(sources.take(rows))
        if its_vectors is not None:
            vectors.append(its_vectors[rows])
    index: PatchIndex = create_index(
        order.grid,
        np.concatenate(tokens),
        np.concatenate(vectors) if vectors else None,
        order.codebook,
        SourceTable.concat(tables),
        order.spec,
        order.structure,
        order.recall_target,
    )
    save_index(index, order.path)


Run = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]], bool], Iterator[Any]]
"""Called with a function, its arguments and whether it wants a GPU; gives what it returns, in
order."""


def run_here(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], gpu: bool
) -> Iterator[Any]:
    """One call after the other, in this process."""
    return (function(*arguments) for arguments in calls)
