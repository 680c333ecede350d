"""Tensors of checkpoint files, read one at a time, never executed and never mapped."""

from __future__ import annotations

import json
import struct
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import torch
from torch import Tensor

from ..bounds import shown
from ..errors import InputError
from ..files import GGUF, check_kind, read_text
from ..paths import look_at
from ..tensor_file import State, file_state, read_bytes, read_table
from .pickles import STREAMS, check_pickle

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
DTYPES = {
    **{"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64},
    **{"I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
    **{"BOOL": torch.bool, "U8": torch.uint8},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
"""PyTorch's types by the names of `.safetensors`."""
STEMS = (
    ("model", "safetensors"),
    ("pytorch_model", "safetensors"),
    ("pytorch_model", "bin"),
)
"""What the weight files of a model folder are called; Show-o's name is the second."""
ZIP = b"PK\x03\x04"
"""Begins a `.bin` file of PyTorch 1.6 or newer; older ones are one stream."""

PIECE = 2**18
"""Elements that are read at once where they are converted: memory never holds a tensor twice, and
what a piece leaves free is too small for anything but the next piece."""


class Source(Protocol):
    """Where a tensor is read from."""

    @property
    def dtype(self) -> torch.dtype | str:
        """A name, if PyTorch has no such type."""
        ...

    def read(self, rows: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor or its first rows, in its own type or in another one."""
        ...


@dataclass(frozen=True)
class Weights:
    """Names, shapes and sources of the tensors of one checkpoint; nothing is read before `read`."""

    shapes: dict[str, tuple[int, ...]]
    sources: dict[str, Source]
    metadata: dict[str, str] = field(default_factory=dict)

    def read(self, name: str, rows: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor `name` in memory of its own, or only its first `rows`; in its own type, or in
        another one.

        Raises:
            InputError: It has another type than weights have, or its file has changed.
        """
        source = self.sources[name]
        if source.dtype not in FLOATS:
            raise InputError(f"{name} is {source.dtype}; only float32, float16 and bfloat16 load")
        return source.read(rows, dtype)

    def joined(self, other: Weights, prefix: str) -> Weights:
        """These and other weights, the names of which get a prefix."""
        shapes = {f"{prefix}{name}": shape for name, shape in other.shapes.items()}
        sources = {f"{prefix}{name}": source for name, source in other.sources.items()}
        return Weights(self.shapes | shapes, self.sources | sources, self.metadata)


def open_weights(files: list[Path]) -> Weights:
    """Open the shards of a checkpoint, `.safetensors` or `.bin`. No file stays open.

    Raises:
        InputError: A file is truncated, or is not what its suffix means.
    """
    merged = Weights({}, {})
    for path in files:
        opened = _open_safetensors(path) if path.suffix == ".safetensors" else _open_bin(path)
        merged.shapes.update(opened.shapes)
        merged.sources.update(opened.sources)
        merged.metadata.update(opened.metadata)
    return merged


@dataclass(frozen=True)
class Stored:
    """A tensor of a file that is not read yet."""

    path: Path
    state: State
    start: int
    """First byte of its first element."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, rows: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """See `Source`.

        Raises:
            InputError: The file has changed.
        """
        shape = self.shape if rows is None else (min(rows, self.shape[0]), *self.shape[1:])
        last = sum((n - 1) * step for n, step in zip(shape, self.strides, strict=True))
        count = 0 if 0 in shape else last + 1
        data = torch.empty(count, dtype=dtype or self.dtype)
        step = PIECE if data.dtype != self.dtype else max(1, count)
        for first in range(0, count, step):
            self._fill(data[first : first + step], first)
        return data.as_strided(shape, self.strides)

    def _fill(self, out: Tensor, first: int) -> None:
        """Read elements [n] from number `first` on."""
        start = self.start + first * self.dtype.itemsize
        part = out if out.dtype == self.dtype else torch.empty(len(out), dtype=self.dtype)
        read_bytes(self.path, self.state, start, part.view(torch.uint8).numpy())
        if part is not out:
            out.copy_(part)


def _open_safetensors(path: Path) -> Weights:
    try:
        table = read_table(path)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is truncated or not a .safetensors file ({error}); download it again"
        ) from error
    sources: dict[str, Source] = {}
    for name, place in table.places.items():
        dtype = DTYPES.get(place.dtype)
        strides = torch.empty(place.shape, device="meta").stride()
        sources[name] = (
            Foreign(place.dtype)
            if dtype is None
            else Stored(path, table.state, place.start, dtype, place.shape, strides)
        )
    shapes = {name: place.shape for name, place in table.places.items()}
    return Weights(shapes, sources, table.metadata)


@dataclass(frozen=True)
class Foreign:
    """A tensor of a type that PyTorch lacks."""

    dtype: str

    def read(self, rows: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """
        Raises:
            InputError: Always.
        """
        raise InputError(f"a tensor is {self.dtype}, which PyTorch lacks; use other weights")


def _open_bin(path: Path) -> Weights:
    """A pickled table of tensors. It is mapped only to learn where they lie, and none of them is
    looked at; one of the older, unzipped kind is read whole."""
    try:
        with path.open("rb") as file:
            check_kind(path, file)
            state = file_state(file)
            file.seek(0)
            zipped = file.read(len(ZIP)) == ZIP
            records = _records(file) if zipped else {}
            _check_pickles(file, zipped)
        table = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except InputError:
        raise
    except Exception as error:  # unpickling damaged or hostile bytes can raise anything
        reason = str(error).splitlines()[0][:150] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is truncated, or holds more than tensors ({reason}); download it again"
        ) from error
    if not isinstance(table, dict) or not all(_is_plain(n, t) for n, t in table.items()):
        raise InputError(f"{path} does not hold a table of tensors; download it again")
    shapes = {name: tuple(t.shape) for name, t in table.items()}
    beginning = _beginning(path, list(table.values()), records) if zipped else 0
    sources: dict[str, Source] = {}
    for name, tensor in table.items():
        start = tensor.data_ptr() - beginning if tensor.numel() else 0
        sources[name] = (
            Stored(path, state, start, tensor.dtype, shapes[name], tensor.stride())
            if zipped
            else Held(tensor.detach())
        )
    return Weights(shapes, sources)


@dataclass(frozen=True)
class Held:
    """A tensor that is in memory already."""

    tensor: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def read(self, rows: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """See `Source`."""
        part = self.tensor if rows is None else self.tensor[:rows]
        return part.to(dtype or part.dtype)


def _records(file: BinaryIO) -> dict[int, int]:
    """Where the records of a zip archive begin, and how many bytes they have.

    Raises:
        ValueError: The numbers are of another byte order than this computer's, or a record is
            compressed: PyTorch compresses none, and a small one can fill any memory.
    """
    found = {}
    with zipfile.ZipFile(file) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{shown(record.filename)} in it is compressed")
            order = record.filename.endswith("/byteorder") and archive.read(record).decode()
            if order and order != sys.byteorder:
                raise ValueError("its numbers have another byte order")
            file.seek(record.header_offset + 26)  # the local header's two last fields
            name, extra = struct.unpack("<2H", file.read(4))
            found[record.header_offset + 30 + name + extra] = record.file_size
    return found


def _check_pickles(file: BinaryIO, zipped: bool) -> None:
    """See `check_pickle`."""
    if not zipped:
        file.seek(0)
        for _ in range(STREAMS):
            check_pickle(file)
        return
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                with archive.open(name) as record:
                    check_pickle(cast(BinaryIO, record))


def _beginning(path: Path, tensors: list[Tensor], records: dict[int, int]) -> int:
    """The address at which the first byte of the file is mapped: the one at which every tensor's
    storage is a record of the archive.

    Raises:
        InputError: There is none.
    """
    storages = [tensor.untyped_storage() for tensor in tensors]
    places = {(s.data_ptr(), s.nbytes()) for s in storages if s.nbytes()}
    if not places:
        return 0
    lowest = min(places)[0]
    for offset in records:
        beginning = lowest - offset
        if all(records.get(place - beginning) == size for place, size in places):
            return beginning
    raise InputError(
        f"{path} is damaged: its directory does not match its tensors; download it again"
    )


def _is_plain(name: object, tensor: object) -> bool:
    """Whether this is a named tensor with memory of its own, neither sparse nor a mere shape."""
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        return False
    return tensor.layout == torch.strided and not tensor.is_meta


def find_weight_files(folder: Path) -> list[Path]:
    """The weight files of a downloaded model folder, all shards of it.

    Raises:
        InputError: There are none, or a shard that the folder's index names is missing.
    """
    for stem, suffix in STEMS:
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            return _shards(folder, index)
        if (folder / f"{stem}.{suffix}").is_file():
            return [folder / f"{stem}.{suffix}"]
        if shards := sorted(folder.glob(f"{stem}-*-of-*.{suffix}")):
            return _complete(folder, shards)
    if other := next(folder.glob("*.gguf"), None):
        raise InputError(f"{other} is {GGUF}")
    raise InputError(
        f"{folder} has no model*.safetensors and no pytorch_model*.bin; "
        "put the downloaded weight files there"
    )


def _complete(folder: Path, shards: list[Path]) -> list[Path]:
    """The shards, if their number matches their names (`model-00001-of-00002`)."""
    promised = shards[0].stem.rsplit("-of-", 1)[1]
    if not promised.isdigit() or int(promised) != len(shards):
        raise InputError(
            f"{folder} has {len(shards)} of the shards that {shards[0].name} belongs to; "
            "download all of them"
        )
    return shards


def _shards(folder: Path, index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError(f"{index} has no weight_map; download it again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise InputError(f"{index} names {name!r}, which is not a weight file in its folder")
        if look_at(folder / name) is None:
            raise InputError(f"{folder} lacks {name}, which {index.name} lists; download it too")
    return [folder / name for name in names]


def read_json(path: Path) -> dict:
    """A JSON object from a file, with or without a byte-order mark.

    Raises:
        InputError: The file does not hold one.
    """
    try:
        with path.open("rb") as file:
            check_kind(path, file)
        value = json.loads(read_text(path))
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object; download it again")
    return value
