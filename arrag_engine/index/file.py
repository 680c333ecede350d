"""The index file: one `.safetensors`, written whole or not at all, trusted in nothing when read."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import InputError
from ..files import atomic_write
from ..grid import Grid
from .keys import KeySpec
from .patch_index import PatchIndex, Source

FORMAT = "arrag-index"
VERSION = "1"
TEXT_FIELDS = ("name", "caption", "sha256", "licence")


def save_index(index: PatchIndex, path: Path) -> None:
    """Write the index to `path`.

    Raises:
        InputError: The file cannot be written.
    """
    tables = [{k: v for k, v in asdict(s).items() if k != "thumbnail"} for s in index.sources]
    thumbnails = [s.thumbnail for s in index.sources]
    tensors = {
        "tokens": index.tokens.reshape(-1, index.grid.height, index.grid.width),
        "codebook": index.codebook,
        "sources": np.frombuffer(json.dumps(tables).encode(), dtype=np.uint8),
        "thumbnails": np.frombuffer(b"".join(thumbnails), dtype=np.uint8),
        "thumbnail_ends": np.cumsum([len(t) for t in thumbnails], dtype=np.int64),
    }
    if index.vectors is not None:
        dim = index.vectors.shape[-1]
        tensors["vectors"] = index.vectors.reshape(-1, index.grid.height, index.grid.width, dim)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "grid": str(index.grid),
        "images": str(len(index.tokens)),
        "patches": str(index.size),
        "neighborhood": index.spec.neighborhood,
        "borders": index.spec.borders,
        "key_space": index.spec.space,
    }
    with atomic_write(path) as temporary:
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary, header)


def read_header(path: Path) -> dict[str, str]:
    """Header fields of an index file, without reading its tensors.

    Raises:
        InputError: Not an index file of this format.
    """
    with _open(path) as file:
        return _checked_header(path, file.metadata() or {})


def is_index(path: Path) -> bool:
    """Whether the file calls itself a patch index, readable or not."""
    try:
        with _open(path) as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except InputError:
        return False


def load_index(path: Path) -> PatchIndex:
    """Read an index and check everything that searching relies on.

    Raises:
        InputError: The file is damaged, truncated, empty or of another kind.
    """
    with _open(path) as file:
        header = _checked_header(path, file.metadata() or {})
        names = set(file.keys())
        spec = KeySpec(header["neighborhood"], header["borders"], header["key_space"])  # type: ignore[arg-type]
        wanted = {"tokens", "codebook", "sources", "thumbnails", "thumbnail_ends"}
        if spec.space == "encoder":
            wanted.add("vectors")
        if missing := sorted(wanted - names):
            raise _damaged(path, f"it lacks {', '.join(missing)}")
        tensors = {name: _read_tensor(path, file, name) for name in wanted}
    try:
        grid = Grid.parse(header["grid"])
    except ValueError as error:
        raise _damaged(path, f"its header says {error}") from error
    return _assemble(path, grid, spec, header, tensors)


def _open(path: Path) -> Any:
    if not Path(path).is_file():
        raise InputError(f"there is no index file {path}")
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a readable .safetensors file ({error}); copy or build the index again"
        ) from error


def _read_tensor(path: Path, file: Any, name: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except (AttributeError, TypeError, ValueError, SafetensorError) as error:
        raise _damaged(path, f"{name} has a type that NumPy lacks ({error})") from error


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"the index {path} is damaged: {what}; copy or build it again")


def _checked_header(path: Path, header: dict[str, str]) -> dict[str, str]:
    if header.get("format") != FORMAT:
        raise InputError(
            f"{path} is not a patch index (its header says format {header.get('format')!r}); "
            "make one with 'python -m arrag_engine build'"
        )
    if header.get("version") != VERSION:
        raise InputError(
            f"{path} has index version {header.get('version')!r}, this program reads {VERSION}; "
            "update the program or build the index again"
        )
    fields = ("grid", "images", "patches", "neighborhood", "borders", "key_space")
    if missing := [f for f in fields if f not in header]:
        raise _damaged(path, f"its header lacks {', '.join(missing)}")
    return header


def _assemble(
    path: Path, grid: Grid, spec: KeySpec, header: dict[str, str], tensors: dict[str, np.ndarray]
) -> PatchIndex:
    tokens, codebook = tensors["tokens"], tensors["codebook"]
    _check_array(path, "tokens", tokens, np.uint16, (None, grid.height, grid.width))
    _check_array(path, "codebook", codebook, np.float32, (None, None))
    if len(tokens) == 0:
        raise InputError(f"the index {path} is empty; build one from at least one picture")
    if tokens.max() >= len(codebook):
        raise _damaged(path, f"it holds code {tokens.max()} of a codebook of {len(codebook)}")
    _check_unit_rows(path, "codebook", codebook)
    vectors = tensors.get("vectors")
    if vectors is not None:
        shape = (len(tokens), grid.height, grid.width, codebook.shape[1])
        _check_array(path, "vectors", vectors, np.float32, shape)
        _check_unit_rows(path, "vectors", vectors)
        vectors = vectors.reshape(len(tokens), grid.size, -1)
    index = PatchIndex(
        grid,
        tokens.reshape(len(tokens), grid.size),
        vectors,
        codebook,
        _read_sources(path, len(tokens), tensors),
        spec,
    )
    counts = (str(len(tokens)), str(index.size))
    if counts != (header["images"], header["patches"]):
        raise _damaged(
            path,
            f"its header promises {header['images'][:20]} pictures and {header['patches'][:20]} "
            f"patches, it holds {counts[0]} and {counts[1]}",
        )
    if index.size == 0:
        raise InputError(f"the index {path} has no patch with neighbours on a {grid} grid")
    return index


def _check_array(
    path: Path, name: str, array: np.ndarray, dtype: Any, shape: tuple[int | None, ...]
) -> None:
    fits = array.ndim == len(shape) and all(
        s in (None, n) for s, n in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        wanted = "x".join("?" if s is None else str(s) for s in shape)
        found = "x".join(map(str, array.shape))
        raise _damaged(
            path, f"{name} is {array.dtype} {found}, expected {np.dtype(dtype)} {wanted}"
        )


def _check_unit_rows(path: Path, name: str, array: np.ndarray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(array, axis=-1)
    if not np.all(np.abs(lengths - 1) < 1e-3):  # also false for NaN
        raise _damaged(path, f"{name} holds rows that are not unit vectors")


def _read_sources(path: Path, images: int, tensors: dict[str, np.ndarray]) -> list[Source]:
    for name, dtype in (("sources", np.uint8), ("thumbnails", np.uint8)):
        _check_array(path, name, tensors[name], dtype, (None,))
    ends = tensors["thumbnail_ends"]
    _check_array(path, "thumbnail_ends", ends, np.int64, (images,))
    blob = tensors["thumbnails"].tobytes()
    starts = np.concatenate(([0], ends[:-1]))
    if (ends < starts).any() or ends[-1] != len(blob):
        raise _damaged(path, "the lengths of its thumbnails do not add up")
    try:
        tables = json.loads(tensors["sources"].tobytes().decode())
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its table of sources cannot be read") from error
    if not isinstance(tables, list) or len(tables) != images:
        raise _damaged(path, f"its table of sources does not list {images} pictures")
    return [_read_source(path, t, blob[a:b]) for t, a, b in zip(tables, starts, ends, strict=True)]


def _read_source(path: Path, table: Any, thumbnail: bytes) -> Source:
    def is_text(value: Any) -> bool:
        return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)

    def is_size(value: Any) -> bool:
        return type(value) is int and 0 < value < 2**31

    if (
        not isinstance(table, dict)
        or set(table) != {*TEXT_FIELDS, "width", "height"}
        or not all(is_text(table[f]) for f in TEXT_FIELDS)
        or not (is_size(table["width"]) and is_size(table["height"]))
    ):
        raise _damaged(path, "its table of sources has a malformed entry")
    return Source(**table, thumbnail=thumbnail)
