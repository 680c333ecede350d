"""`.safetensors` files by plain reads. If another program shortens a mapped file, the process ends
with a signal; a read gets fewer bytes, which raises an ordinary error."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import InputError
from .files import check_kind

MAX_HEADER = 100_000_000
"""Bytes; the reference reader refuses longer headers too."""
MAX_ELEMENTS = 2**62
METADATA = "__metadata__"
BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""The format's names of types, and bits of an element."""


@dataclass(frozen=True)
class State:
    """Facts of a file that change when it is written to."""

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Place:
    """A tensor in a file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the beginning of the file."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class TensorTable:
    """The header of a file."""

    path: Path
    state: State
    places: dict[str, Place]
    metadata: dict[str, str]


def file_state(file: BinaryIO | RawIOBase) -> State:
    """Of an open file, whatever lies under its name by now."""
    stat = os.fstat(file.fileno())
    return State(stat.st_size, stat.st_mtime_ns)


def changed(path: Path) -> InputError:
    return InputError(
        f"{path} has changed while it was in use; wait until it is written completely, then load "
        "it again"
    )


def read_table(path: Path) -> TensorTable:
    """The header of a `.safetensors` file, checked against the size of the file.

    Raises:
        InputError: It is a file of another kind that is known.
        OSError: It cannot be read.
        ValueError: It is damaged, cut off or something else.
    """
    with path.open("rb") as file:
        check_kind(path, file)
        file.seek(0)
        state = file_state(file)
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, state.size - 8):
            raise ValueError("its header is not whole")
        text = file.read(length)
    try:
        table = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError("its header is not JSON") from error
    if not isinstance(table, dict):
        raise ValueError("its header is not a table")
    metadata = table.pop(METADATA, None)
    metadata = {} if metadata is None else metadata
    _check_texts(metadata)
    places = {name: _place(name, entry, 8 + length) for name, entry in table.items()}
    _check_order(places, 8 + length, state.size)
    return TensorTable(path, state, places, metadata)


def _check_texts(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its header fields are not texts")
    for text in (*metadata, *metadata.values()):
        text.encode()  # JSON can spell halves of characters, UTF-8 has none


def _place(name: str, entry: object, data: int) -> Place:
    """A tensor's entry in the header; `data` is where the tensors begin."""
    name.encode()
    shown = ascii(name)[1:-1][:80]
    if not isinstance(entry, dict):
        raise ValueError(f"{shown} has no entry")
    dtype: object = entry.get("dtype")
    shape, offsets = _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{shown} has an unknown type")
    if shape is None or offsets is None or len(offsets) != 2:
        raise ValueError(f"{shown} has no proper shape and place")
    if math.prod(max(1, n) for n in shape) > MAX_ELEMENTS:
        raise ValueError(f"{shown} is too large")
    start, end = offsets
    if math.prod(shape) * BITS[dtype] != (end - start) * 8:
        raise ValueError(f"the shape of {shown} does not match its bytes")
    return Place(dtype, shape, data + start, end - start)


def _counts(numbers: object) -> tuple[int, ...] | None:
    """The numbers of a list of counts; None if it is something else."""
    if isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers):
        return tuple(numbers)
    return None


def _check_order(places: dict[str, Place], data: int, size: int) -> None:
    """Tensors lie one after the other, from the header to the end of the file."""
    end = data
    for place in sorted(places.values(), key=lambda p: (p.start, p.size)):
        if place.start != end:
            raise ValueError("its tensors overlap or leave gaps")
        end += place.size
    if end != size:
        raise ValueError(f"its tensors end at byte {end}, the file at {size}")


def read_bytes(path: Path, state: State, start: int, data: np.ndarray) -> None:
    """Fill `data` [bytes] uint8 from a file in the state in which its table was read.

    Raises:
        InputError: The file has changed since, or cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            read_from(file, path, state, start, data)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; copy it again") from error


def read_from(file: RawIOBase, path: Path, state: State, start: int, data: np.ndarray) -> None:
    """The same from a file that is open.

    Raises:
        InputError: The file has changed.
    """
    view, done = data.data, 0
    file.seek(start)
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise changed(path)
        done += count
    if file_state(file) != state:
        raise changed(path)
