"""Large `.safetensors` files: written piece by piece with a hash per tensor, read into memory or,
if they are very large, memory-mapped."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np

from ..errors import InputError
from ..files import atomic_write
from ..tensor_file import Place, TensorTable, changed, file_state, read_bytes, read_from, read_table

DTYPES = {
    "int64": "I64",
    "float32": "F32",
    "int32": "I32",
    "uint32": "U32",
    "float16": "F16",
    "uint16": "U16",
    "uint8": "U8",
}
"""Types an index is made of, and their names in the file."""
NUMPY = {name: dtype for dtype, name in DTYPES.items()}
CHUNK = 2**24
IN_MEMORY = sys.maxsize if os.name == "nt" else 256 * 2**20
"""Bytes up to which a tensor is read into memory: all of them on Windows, where a mapped
file cannot be replaced."""
HASH = "hash."
"""Header fields `hash.NAME` hold the SHA-256 of the bytes of tensor NAME."""
FINGERPRINT = "fingerprint"
ALIGNMENT = 64


@dataclass(frozen=True)
class Stream:
    """A tensor that is never whole in memory."""

    dtype: type[np.generic]
    shape: tuple[int, ...]
    chunks: Iterable[np.ndarray]
    """Its elements in order, in pieces of any size."""


Tensor = np.ndarray | Stream


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    """Write tensors and header fields, adding the hashes and the fingerprint of the whole.

    Raises:
        InputError: The file cannot be written.
    """
    sizes = {name: np.dtype(t.dtype).itemsize for name, t in tensors.items()}
    names = sorted(tensors, key=lambda name: (-sizes[name], name))  # keeps every tensor aligned
    blank = "0" * hashlib.sha256().digest_size * 2
    hashes = dict.fromkeys(names, blank)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(_head(names, tensors, header, hashes, blank))
        for name in names:
            hashes[name] = _write_tensor(file, name, tensors[name])
        whole = fingerprint(header, hashes)
        file.seek(0)
        file.write(_head(names, tensors, header, hashes, whole))


def fingerprint(header: Mapping[str, str], hashes: Mapping[str, str]) -> str:
    """One SHA-256 of the header fields and the tensors' hashes."""
    text = json.dumps([dict(header), dict(hashes)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _head(
    names: list[str],
    tensors: Mapping[str, Tensor],
    header: dict[str, str],
    hashes: dict[str, str],
    whole: str,
) -> bytes:
    """The file up to its first tensor; as long for one set of hashes as for another."""
    facts = header | {f"{HASH}{name}": hashes[name] for name in names} | {FINGERPRINT: whole}
    table: dict[str, object] = {"__metadata__": facts}
    start = 0
    for name in names:
        end = start + _bytes(tensors[name])
        table[name] = {
            "dtype": DTYPES[np.dtype(tensors[name].dtype).name],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize


def _write_tensor(file: BinaryIO, name: str, tensor: Tensor) -> str:
    digest, written = hashlib.sha256(), 0
    chunks = tensor.chunks if isinstance(tensor, Stream) else pieces(tensor)
    for chunk in chunks:
        data = _raw(np.ascontiguousarray(chunk, dtype=tensor.dtype))
        digest.update(data)
        file.write(data)
        written += len(data)
    if written != _bytes(tensor):
        raise ValueError(f"{name} announced {_bytes(tensor)} bytes and wrote {written}")
    return digest.hexdigest()


def _raw(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data


def pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """The array in pieces of some megabytes, so that a mapped one is not copied whole."""
    rows = max(1, CHUNK // max(1, array[:1].nbytes))
    return (array[i : i + rows] for i in range(0, len(array), rows))


class MappedFile:
    """A file with tensors too large for memory: arrays are mapped from it, byte strings read.

    It is held open, so another file of its name may replace it. It must not be written to: `check`
    finds that out.

    Raises:
        InputError: It has changed since its table was read.
        OSError: It cannot be opened.
    """

    def __init__(self, table: TensorTable) -> None:
        self.path, self.state = table.path, table.state
        self._file = open(table.path, "rb", buffering=0)  # noqa: SIM115
        self._lock = Lock()
        self.check()
        self._map = mmap.mmap(self._file.fileno(), self.state.size, access=mmap.ACCESS_READ)

    def check(self) -> None:
        """Make sure, before the mapped bytes are read, that they are unchanged.

        Raises:
            InputError: The file has been written to or cut off.
        """
        if file_state(self._file) != self.state:
            raise changed(self.path)

    def view(self, place: Place) -> np.ndarray:
        """The bytes of a tensor where they lie."""
        return np.frombuffer(self._map, np.uint8, place.size, place.start)

    def read(self, start: int, size: int) -> np.ndarray:
        """A copy of some bytes.

        Raises:
            InputError: The file has been written to or cut off.
        """
        data = np.empty(size, np.uint8)
        with self._lock:
            read_from(self._file, self.path, self.state, start, data)
        return data

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


class FileBytes:
    """Bytes [n] of a mapped file, read on access; a shortened file is an error, not a signal."""

    dtype = np.dtype(np.uint8)
    ndim = 1

    def __init__(self, file: MappedFile, place: Place) -> None:
        self.file = file
        self.start = place.start
        self.shape = (place.size,)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: slice) -> np.ndarray:
        """
        Raises:
            InputError: The file has been written to or cut off.
        """
        start, stop, _ = where.indices(len(self))
        return self.file.read(self.start + start, max(0, stop - start))


class TensorFile:
    """A `.safetensors` file whose tensors are read on access.

    Args:
        kind: What messages call it.
        made: How one of them is made anew.

    Raises:
        InputError: There is no such file, or it is not one of this kind.
    """

    def __init__(self, path: Path, kind: str = "index", made: str = "build") -> None:
        if not Path(path).is_file():
            raise InputError(f"there is no {kind} file {path}")
        self.path = Path(path)
        try:
            self._table = read_table(self.path)
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} is not a readable .safetensors file ({error}); copy or {made} it again"
            ) from error
        self.header: dict[str, str] = self._table.metadata
        self.names = sorted(self._table.places)

    @cached_property
    def _mapped(self) -> MappedFile:
        return MappedFile(self._table)

    @property
    def mapped(self) -> MappedFile | None:
        """The file that stays open while tensors are in use; None if all of them are in memory."""
        return self.__dict__.get("_mapped")

    def tensor(self, name: str) -> np.ndarray:
        """A tensor that cannot be written to: in memory, or mapped if it is large.

        Raises:
            InputError: The file has changed since it was opened.
            ValueError: The file lacks it, or gives it a type that an index has no use for.
        """
        place = self._place(name)
        if not _is_large(place):
            return self.in_memory(name)
        if place.start % np.dtype(NUMPY[place.dtype]).itemsize:
            raise ValueError(f"{name} lies between the bytes of its type")
        self._mapped.check()
        return _as_array(self._mapped.view(place), place)

    def column(self, name: str) -> np.ndarray | FileBytes:
        """A tensor that has little to a picture, in memory; bytes of which there are many stay in
        the file, to be read when asked for.

        Raises:
            InputError, ValueError: As `tensor`.
        """
        place = self._place(name)
        if _is_large(place) and place.dtype == "U8" and len(place.shape) == 1:
            return FileBytes(self._mapped, place)
        return self.in_memory(name)

    def in_memory(self, name: str) -> np.ndarray:
        """A tensor that cannot be written to, whatever its size.

        Raises:
            InputError, ValueError: As `tensor`.
        """
        place = self._place(name)
        return _as_array(self._read(place.start, place.size), place)

    def _place(self, name: str) -> Place:
        shown = ascii(name)[1:-1]
        if name not in self._table.places:
            raise ValueError(f"it lacks {shown}")
        place = self._table.places[name]
        if place.dtype not in NUMPY:
            raise ValueError(f"{shown} is {place.dtype}, which no part of an index has")
        return place

    def _read(self, start: int, size: int) -> np.ndarray:
        data = np.empty(size, np.uint8)
        read_bytes(self.path, self._table.state, start, data)
        return data

    def hashes(self, progress: Callable[[int, int], None] | None = None) -> dict[str, str]:
        """The SHA-256 of every tensor's bytes, computed from the file.

        Raises:
            InputError: The file has changed since it was opened.
        """
        found = {}
        for i, name in enumerate(self.names):
            digest, place = hashlib.sha256(), self._table.places[name]
            end = place.start + place.size
            for start in range(place.start, end, CHUNK):
                size = min(CHUNK, end - start)
                digest.update(self._read(start, size).data)
            found[name] = digest.hexdigest()
            if progress is not None:
                progress(i + 1, len(self.names))
        return found


def _is_large(place: Place) -> bool:
    return place.size > IN_MEMORY


def _as_array(data: np.ndarray, place: Place) -> np.ndarray:
    array = data.view(NUMPY[place.dtype]).reshape(place.shape)
    array.flags.writeable = False
    return array


def check_array(
    name: str, array: np.ndarray | FileBytes, dtype: type[np.generic], shape: tuple[int | None, ...]
) -> None:
    """Compare type and shape; None stands for any length.

    Raises:
        ValueError: They differ.
    """
    fits = array.ndim == len(shape) and all(
        s in (None, n) for s, n in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        wanted = "x".join("?" if s is None else str(s) for s in shape)
        found = "x".join(map(str, array.shape))
        raise ValueError(f"{name} is {array.dtype} {found}, expected {np.dtype(dtype)} {wanted}")
