"""Large `.safetensors` files: written piece by piece with a hash per tensor, read memory-mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import InputError
from ..files import atomic_write

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
CHUNK = 2**24
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


class TensorFile:
    """A `.safetensors` file whose tensors stay on disk until they are looked at.

    Raises:
        InputError: There is no such file, or it is not one of this kind.
    """

    def __init__(self, path: Path) -> None:
        if not Path(path).is_file():
            raise InputError(f"there is no index file {path}")
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError, RuntimeError) as error:
            raise InputError(
                f"{path} is not a readable .safetensors file ({error}); copy or build it again"
            ) from error
        self.header: dict[str, str] = dict(self._file.metadata() or {})
        self.names = sorted(self._file.keys())

    def tensor(self, name: str) -> np.ndarray:
        """A read-only view of the file's bytes.

        Raises:
            ValueError: The file lacks it, or gives it a type that an index has no use for.
        """
        if name not in self.names:
            raise ValueError(f"it lacks {name}")
        told = ascii(name)[1:-1]
        try:
            array = self._file.get_tensor(name).numpy()
        except (AttributeError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{told} has a type that NumPy lacks") from error
        if array.dtype.name not in DTYPES:
            raise ValueError(f"{told} is {array.dtype}, which no part of an index has")
        array.flags.writeable = False
        return array

    def hashes(self, progress: Callable[[int, int], None] | None = None) -> dict[str, str]:
        """The SHA-256 of every tensor's bytes, worked out from the file.

        Raises:
            ValueError: A tensor has a type that an index has no use for.
        """
        found = {}
        for i, name in enumerate(self.names):
            digest = hashlib.sha256()
            array = self.tensor(name)
            for piece in pieces(array.reshape(-1)):
                digest.update(_raw(piece))
            found[name] = digest.hexdigest()
            if progress is not None:
                progress(i + 1, len(self.names))
        return found


def check_array(
    name: str, array: np.ndarray, dtype: type[np.generic], shape: tuple[int | None, ...]
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
