"""The index file: one `.safetensors`, written completely or not at all, checked when read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..errors import InputError
from ..grid import Grid
from .calibration import Calibration
from .container import FINGERPRINT, Tensor, TensorFile, check_array, write_tensors
from .keys import Keys, KeySpec
from .patch_index import PatchIndex
from .search import Stored, load_searcher
from .sources import SourceTable

FORMAT = "arrag-index"
MANIFEST = ".json"
"""Suffix of the manifest of an index in shards."""
VERSION = "2"
FIELDS = (
    *("grid", "images", "patches", "neighborhood", "borders", "key_space", "position_weight"),
    *("structure", FINGERPRINT),
)
CALIBRATION = "calibration"
"""Header field of an index that has one."""
SOURCES = "sources."
SEARCH = "search."
ROWS = 2**20
"""Vectors looked at at once."""
Part = TypeVar("Part")


def save_index(index: PatchIndex, path: Path) -> None:
    """Write the index to `path`; arrays mapped from another file are copied piece by piece.

    Raises:
        InputError: The file cannot be written.
    """
    if index.images is not None:
        raise ValueError("a restricted view is not saved; save the whole index")
    grid, spec = index.grid, index.spec
    structure: Stored = index.searcher
    shape = (len(index.tokens), grid.height, grid.width)
    tensors: dict[str, Tensor] = {
        "tokens": index.tokens.reshape(shape),
        "codebook": index.codebook,
        **{f"{SOURCES}{name}": array for name, array in index.sources.arrays().items()},
        **{f"{SEARCH}{name}": array for name, array in structure.arrays().items()},
    }
    if index.vectors is not None:
        tensors["vectors"] = index.vectors.reshape(*shape, -1)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "grid": str(grid),
        "images": str(len(index.tokens)),
        "patches": str(index.size),
        "neighborhood": spec.neighborhood,
        "borders": spec.borders,
        "key_space": spec.space,
        "position_weight": repr(float(spec.position_weight)),
        "structure": structure.kind,
        **{f"{SEARCH}{name}": value for name, value in structure.settings.items()},
    }
    if index.calibration is not None:
        header[CALIBRATION] = index.calibration.to_json()
    write_tensors(path, tensors, header)


def read_header(path: Path) -> dict[str, str]:
    """Header fields of an index file, without reading its tensors.

    Raises:
        InputError: Not an index file of this format.
    """
    return open_index(path).header


def is_index(path: Path) -> bool:
    """Whether the header names the format of a patch index; the rest may be damaged."""
    try:
        return TensorFile(path).header.get("format") == FORMAT
    except InputError:
        return False


def open_index(path: Path) -> TensorFile:
    """The file of an index, its header checked and its tensors not yet.

    Raises:
        InputError: Not an index file of this format.
    """
    if Path(path).suffix.lower() == MANIFEST:
        raise in_shards(path)
    file = TensorFile(path)
    header = file.header
    found, version = (header.get(name, "")[:20] for name in ("format", "version"))
    if found != FORMAT:
        raise InputError(
            f"{path} is not a patch index (the format in its header is {found!r}); "
            "make one with 'python -m arrag_engine build'"
        )
    if version != VERSION:
        raise InputError(
            f"{path} has index version {version!r}, this program reads {VERSION}; "
            "update the program or build the index again"
        )
    if missing := [f for f in FIELDS if f not in header]:
        raise damaged(path, f"its header lacks {', '.join(missing)}")
    return file


def in_shards(path: Path) -> InputError:
    """What is said of a manifest where an index in one file is needed."""
    return InputError(
        f"{path} is the manifest of an index in shards, which is for drawing only; name an index "
        "in one file"
    )


def load_index(path: Path) -> PatchIndex:
    """Read an index, mapping what is large, and check everything that searching relies on.

    Changed values that stay in range are found by `check_index` only.

    Raises:
        InputError: The file is damaged, truncated, empty or of another kind, or changes meanwhile.
    """
    file = open_index(path)
    try:
        return _read_index(file)
    except InputError:
        raise
    except ValueError as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, what: str) -> InputError:
    return InputError(f"the index {path} is damaged: {what}; copy or build it again")


def _read_index(file: TensorFile) -> PatchIndex:
    """The index in a file.

    Raises:
        InputError: It is empty, or its keys are made in a way that this program does not support.
        ValueError: It is damaged.
    """
    header = file.header
    spec = KeySpec(
        header["neighborhood"],
        header["borders"],  # type: ignore[arg-type]
        header["key_space"],  # type: ignore[arg-type]
        _number("position_weight", header),
    )
    grid = _grid(header["grid"])
    if len(spec.active(grid)) == 0:
        raise InputError(f"the index {file.path} has no patch with neighbours on a {grid} grid")
    tokens, codebook = file.tensor("tokens"), file.in_memory("codebook")
    _check_tokens(file.path, tokens, codebook, grid)
    _check_counts(header, len(tokens), len(tokens) * len(spec.active(grid)))
    exact = spec.space == "encoder" and header["structure"] == "flat"
    _check_names(file, {"tokens", "codebook", *(("vectors",) if exact else ())})
    vectors = _read_vectors(file, tokens.shape, codebook.shape[1]) if exact else None
    tokens = tokens.reshape(len(tokens), grid.size)
    sources = SourceTable.from_arrays(_group(file, SOURCES, file.column), len(tokens))
    searcher = load_searcher(
        header["structure"],
        Keys(tokens, vectors, codebook, grid, spec),
        _group(file, SEARCH, file.tensor),
        _settings(header),
    )
    return PatchIndex(
        grid,
        tokens,
        vectors,
        codebook,
        sources,
        spec,
        searcher,
        calibration=Calibration.from_json(header[CALIBRATION]) if CALIBRATION in header else None,
        file=file.mapped,
    )


def _check_names(file: TensorFile, known: set[str]) -> None:
    for name in file.names:
        if name not in known and not name.startswith((SOURCES, SEARCH)):
            raise ValueError(f"it holds {ascii(name)[:40]}, which is not part of such an index")


def _check_counts(header: dict[str, str], images: int, patches: int) -> None:
    if (header["images"], header["patches"]) != (str(images), str(patches)):
        raise ValueError(
            f"its header announces {header['images'][:20]} pictures and {header['patches'][:20]} "
            f"patches, it holds {images} and {patches}"
        )


def _read_vectors(file: TensorFile, shape: tuple[int, ...], dim: int) -> np.ndarray:
    """The encoder's vectors [images, N, dim] of tokens of this shape."""
    vectors = file.tensor("vectors")
    check_array("vectors", vectors, np.float32, (*shape, dim))
    _check_rows("vectors", vectors)
    return vectors.reshape(shape[0], -1, dim)


def _grid(text: str) -> Grid:
    try:
        return Grid.parse(text)
    except ValueError as error:
        raise ValueError(f"its header has {error}") from error


def _number(name: str, header: dict[str, str]) -> float:
    text = header.get(name, "")
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"its header has {name} {text[:20]!r}") from error


def _check_tokens(path: Path, tokens: np.ndarray, codebook: np.ndarray, grid: Grid) -> None:
    check_array("tokens", tokens, np.uint16, (None, grid.height, grid.width))
    check_array("codebook", codebook, np.float32, (None, None))
    if len(tokens) == 0:
        raise InputError(f"the index {path} is empty; build one from at least one picture")
    if tokens.max() >= len(codebook):
        raise ValueError(f"it holds code {tokens.max()} of a codebook of {len(codebook)}")
    _check_rows("codebook", codebook)


def _check_rows(name: str, array: np.ndarray) -> None:
    """Refuse rows that are neither of length 1 nor signs."""
    rows = array.reshape(-1, array.shape[-1]) if array.size else array
    for start in range(0, max(1, len(rows)), ROWS):
        some = rows[start : start + ROWS]
        with np.errstate(over="ignore", invalid="ignore"):
            off = np.abs(np.linalg.norm(some, axis=-1) - 1)
        right = np.all(off < 1e-3) or np.all(np.abs(some) == 1)  # also false for NaN
        if array.shape[-1] == 0 or not right:
            raise ValueError(f"{name} holds rows that are not unit vectors and not signs")


def _group(file: TensorFile, prefix: str, read: Callable[[str], Part]) -> dict[str, Part]:
    """The tensors whose names begin with the prefix, by the rest of their names."""
    return {n.removeprefix(prefix): read(n) for n in file.names if n.startswith(prefix)}


def _settings(header: dict[str, str]) -> dict[str, str]:
    return {n.removeprefix(SEARCH): v for n, v in header.items() if n.startswith(SEARCH)}
