"""The file of a trace: one `.safetensors` a picture, with an identity of every index in the place
of the index itself.

Reading it needs the indexes again. A trace says where in an index a patch is; what is there, it
does not say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..bounds import is_number
from ..errors import InputError
from ..grid import Grid
from ..index import Hits
from ..index.container import (
    FINGERPRINT,
    HASH,
    TensorFile,
    check_array,
    fingerprint,
    write_tensors,
)
from ..retrieval import PatchSource
from ..settings import RetrievalOptions
from .trace import KEPT, Cost, Trace, TraceLayer

FORMAT = "arrag-trace"
VERSION = "1"
LARGEST = 4_000_000
"""Bytes of a picture and layer."""
HEADER = 32_768
"""Bytes of them that are left to the header."""
PICTURE = {"tokens": np.int32, "component": np.int32, "p_model": np.float32}
"""What is known of each position, and its type in the file."""
EACH = {"weight": np.float32, "p_retrieval": np.float32, "responsibility": np.float32}
"""The same of a layer."""
NUMBERS = {"sources": np.int32, "places": np.uint16}
MEASURES = ("distances", "shares")
"""Of each candidate: where it is, and two numbers in one of two precisions."""
WIDTHS = (np.float32, np.float16)
FURTHEST = float(np.finfo(np.float16).max)
LAYER = ("identity", "images", "number", "options")
ROUNDING = 1e-5
"""By which probabilities may exceed 1, and a stored responsibility may differ from the one that the
weights and probabilities make."""


def save_trace(trace: Trace, path: Path) -> None:
    """Write a trace to a `.safetensors` file, of at most `LARGEST` bytes for each layer: where
    64 candidates of each position do not fit, in half precision, and else fewer of them.

    Raises:
        InputError: The file cannot be written.
    """
    layers = [_layer_header(one) for one in trace.layers]
    header = {
        "format": FORMAT,
        "version": VERSION,
        "grid": str(trace.grid),
        "passes": str(trace.cost.passes),
        "seconds": repr(float(trace.cost.seconds)),
        "layers": json.dumps(layers),
    }
    tensors = {name: getattr(trace, name).astype(kind) for name, kind in PICTURE.items()}
    for j, one in enumerate(trace.layers):
        arrays = _layer_arrays(trace.grid, one, trace.responsibilities[j])
        tensors |= {f"layer.{j}.{name}": array for name, array in arrays.items()}
    write_tensors(Path(path), tensors, header)


def _layer_header(layer: TraceLayer) -> dict[str, Any]:
    facts = (layer.source.identity(), len(layer.source.tokens), layer.number, asdict(layer.options))
    return dict(zip(LAYER, facts, strict=True))


def _layer_arrays(
    grid: Grid, layer: TraceLayer, responsibility: np.ndarray
) -> dict[str, np.ndarray]:
    width, count = precision(grid.size, layer.hits.codes.shape[1])
    hits = layer.hits.nearest(count)
    limit = FURTHEST if width is np.float16 else np.inf
    distances = np.where(hits.found(), np.minimum(hits.distances, limit), np.inf)
    return {
        "weight": layer.weight.astype(np.float32),
        "p_retrieval": layer.p_retrieval.astype(np.float32),
        "responsibility": responsibility.astype(np.float32),
        "sources": hits.sources.astype(np.int32),
        "places": np.maximum(hits.positions, 0).astype(np.uint16),
        "distances": distances.astype(width),
        "shares": layer.shares[:, :count].astype(width),
    }


def precision(size: int, candidates: int) -> tuple[type[np.floating], int]:
    """(type of distances and shares, candidates of each position) that fit `LARGEST` bytes."""
    fixed = (*PICTURE.values(), *EACH.values())
    left = LARGEST - HEADER - size * sum(np.dtype(kind).itemsize for kind in fixed)
    numbers = sum(np.dtype(kind).itemsize for kind in NUMBERS.values())
    counts = [
        left // (size * (numbers + len(MEASURES) * np.dtype(width).itemsize)) for width in WIDTHS
    ]
    fitting = [width for width, count in zip(WIDTHS, counts, strict=True) if count >= candidates]
    return (fitting[0], candidates) if fitting else (WIDTHS[-1], counts[-1])


def is_trace(path: Path) -> bool:
    """Whether the header names the format of a trace; the rest may be damaged."""
    try:
        return TensorFile(path).header.get("format") == FORMAT
    except InputError:
        return False


def trace_facts(path: Path) -> dict[str, str]:
    """What the header of a trace says, for people, without its indexes.

    Raises:
        InputError: The file is damaged or of another kind.
    """
    header = _open(path).header
    try:
        layers = [f"{one['images']} pictures ({one['identity'][:12]})" for one in _layers(header)]
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"the trace {path} is damaged: its layers are not described; copy it or draw the "
            "picture again"
        ) from error
    facts = {name: header.get(name, "unknown") for name in ("version", "grid", "passes", "seconds")}
    return facts | {"indexes": ", ".join(layers) or "none"}


def load_trace(path: Path, indexes: Sequence[PatchSource] = ()) -> Trace:
    """Read a trace.

    Args:
        indexes: Those that it was made with, in any order; others do no harm.

    Raises:
        InputError: The file is damaged or of another kind, or an index is missing.
    """
    file = _open(path)
    try:
        _check_hashes(file)
        return _read_trace(file, indexes)
    except InputError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"the trace {path} is damaged: {error}; copy it or draw the picture again"
        ) from error


def _open(path: Path) -> TensorFile:
    """The file of a trace, its header checked for the format and nothing else."""
    file = TensorFile(Path(path), "trace", "write")
    found, version = (file.header.get(name, "")[:20] for name in ("format", "version"))
    if found != FORMAT:
        raise InputError(
            f"{path} is not a trace (the format in its header is {found!r}); write one with "
            "'python -m arrag_engine generate --trace'"
        )
    if version != VERSION:
        raise InputError(
            f"{path} has trace version {version!r}, this program reads {VERSION}; update the "
            "program or draw the picture again"
        )
    return file


def _check_hashes(file: TensorFile) -> None:
    """Refuse a file of which any byte has changed (ValueError)."""
    told = {name: text for name, text in file.header.items() if name.startswith(HASH)}
    if told != {f"{HASH}{name}": text for name, text in file.hashes().items()}:
        raise ValueError("its tensors are not those that were written")
    facts = {n: t for n, t in file.header.items() if n not in told and n != FINGERPRINT}
    hashes = {name.removeprefix(HASH): text for name, text in told.items()}
    if file.header.get(FINGERPRINT) != fingerprint(facts, hashes):
        raise ValueError("its header is not the one that was written")


def _read_trace(file: TensorFile, indexes: Sequence[PatchSource]) -> Trace:
    grid = Grid.parse(_field(file.header, "grid"))
    listed = _layers(file.header)
    names = [f"layer.{j}.{n}" for j in range(len(listed)) for n in (*EACH, *NUMBERS, *MEASURES)]
    if sorted((*PICTURE, *names)) != file.names:
        raise ValueError("its tensors are not those of its layers")
    whole = {name: file.in_memory(name) for name in PICTURE}
    for name, kind in PICTURE.items():
        check_array(name, whole[name], kind, (grid.size,))
    layers = tuple(_read_layer(file, j, one, grid, indexes) for j, one in enumerate(listed))
    cost = Cost(int(_field(file.header, "passes")), float(_field(file.header, "seconds")))
    trace = Trace(
        grid,
        whole["tokens"].astype(np.int64),
        whole["component"].astype(np.int64),
        whole["p_model"].astype(np.float64),
        layers,
        cost,
    )
    _check_values(trace, file)
    return trace


def _field(header: Mapping[str, str], name: str) -> str:
    if name not in header:
        raise ValueError(f"its header lacks {name}")
    return header[name]


def _layers(header: Mapping[str, str]) -> list[Any]:
    """What the header says of each layer, unchecked."""
    try:
        listed = json.loads(_field(header, "layers"))
    except json.JSONDecodeError as error:
        raise ValueError("its layers are no JSON") from error
    if not isinstance(listed, list):
        raise ValueError("its layers are no list")
    return listed


def _read_layer(
    file: TensorFile, j: int, facts: object, grid: Grid, indexes: Sequence[PatchSource]
) -> TraceLayer:
    if not isinstance(facts, dict) or sorted(facts) != sorted(LAYER):
        raise ValueError(f"layer {j} has other facts than {', '.join(LAYER)}")
    options, number = _options(facts["options"]), facts["number"]
    if not is_number(number, whole=True) or number < 0:
        raise ValueError(f"layer {j} has no proper number")
    arrays = {name: file.in_memory(f"layer.{j}.{name}") for name in (*EACH, *NUMBERS, *MEASURES)}
    _check_layer(arrays, grid)
    source = _index_of(file, facts, grid, indexes)
    hits = _hits(arrays, source)
    weight, p_retrieval = (arrays[n].astype(np.float64) for n in ("weight", "p_retrieval"))
    shares = arrays["shares"].astype(np.float64)
    return TraceLayer(source, options, weight, hits, shares, p_retrieval, number)


def _options(facts: object) -> RetrievalOptions:
    try:
        return RetrievalOptions(**facts)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError("the options of a layer are out of range") from error


def _check_layer(arrays: Mapping[str, np.ndarray], grid: Grid) -> None:
    """Compare types and shapes (ValueError)."""
    count = arrays["sources"].shape[-1] if arrays["sources"].ndim == 2 else 0
    if count > KEPT:
        raise ValueError(f"a layer has {count} candidates of a position, at most {KEPT} are kept")
    for name, kind in EACH.items():
        check_array(name, arrays[name], kind, (grid.size,))
    for name, kind in NUMBERS.items():
        check_array(name, arrays[name], kind, (grid.size, count))
    for name in MEASURES:
        half = arrays[name].dtype == np.float16
        check_array(name, arrays[name], np.float16 if half else np.float32, (grid.size, count))


def _index_of(
    file: TensorFile, facts: Mapping[str, Any], grid: Grid, indexes: Sequence[PatchSource]
) -> PatchSource:
    """The index of a layer.

    Raises:
        InputError: It is not among those given.
    """
    for index in indexes:
        if index.grid == grid and index.identity() == facts["identity"]:
            return index
    raise InputError(
        f"the trace {file.path} was made with an index of {str(facts['images'])[:20]} pictures "
        f"(identity {str(facts['identity'])[:12]}) that is not among the {len(indexes)} given; "
        "load that index, unchanged, with the trace"
    )


def _hits(arrays: Mapping[str, np.ndarray], source: PatchSource) -> Hits:
    """The candidates; their codes are read from the index."""
    sources, places = arrays["sources"].astype(np.int64), arrays["places"].astype(np.int64)
    found = sources >= 0
    if sources.min(initial=0) < -1 or sources.max(initial=-1) >= len(source.tokens):
        raise ValueError(f"a candidate lies in no picture of the {len(source.tokens)}")
    if places.max(initial=0) >= source.grid.size:
        raise ValueError("a candidate lies outside its picture")
    codes = source.tokens[np.maximum(sources, 0), places].astype(np.int64)
    distances = arrays["distances"].astype(np.float32)
    if not np.array_equal(np.isfinite(distances), found) or (distances[found] < 0).any():
        raise ValueError("the distance of a candidate is no distance")
    return Hits(distances, np.where(found, codes, -1), sources, np.where(found, places, -1))


def _check_values(trace: Trace, file: TensorFile) -> None:
    """Refuse what no drawing makes (ValueError)."""
    for shares in _probabilities(trace):
        if not np.isfinite(shares).all() or (shares < 0).any() or (shares > 1 + ROUNDING).any():
            raise ValueError("a probability lies outside 0 to 1")
    if (trace.weight > 1 + ROUNDING).any():
        raise ValueError("the weights of a position exceed 1 together")
    if trace.tokens.min() < 0 or (trace.component >= len(trace.layers)).any():
        raise ValueError("a token has no such code or layer")
    if trace.cost.passes < 0 or not 0 <= trace.cost.seconds < float("inf"):
        raise ValueError("its passes or seconds are no such numbers")
    for j in range(len(trace.layers)):
        stored = file.in_memory(f"layer.{j}.responsibility")
        if not np.allclose(stored, trace.responsibilities[j], atol=100 * ROUNDING):
            raise ValueError("the responsibilities do not follow from the weights")


def _probabilities(trace: Trace) -> Iterator[np.ndarray]:
    yield trace.p_model
    for one in trace.layers:
        yield from (one.weight, one.p_retrieval, one.shares)
