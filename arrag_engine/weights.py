"""Tensors of checkpoint files, read one at a time and never executed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import InputError

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Weights:
    """Names, shapes and readers of the tensors of one checkpoint; nothing is read before `read`."""

    shapes: dict[str, tuple[int, ...]]
    readers: dict[str, Callable[[], Tensor]]
    metadata: dict[str, str] = field(default_factory=dict)

    def read(self, name: str) -> Tensor:
        """The tensor `name`, mapped from the file where the format allows."""
        tensor = self.readers[name]()
        if tensor.dtype not in FLOATS:
            raise InputError(f"{name} is {tensor.dtype}; only float32, float16 and bfloat16 load")
        return tensor


def open_weights(files: list[Path]) -> Weights:
    """Open the shards of a checkpoint, `.safetensors` or `.bin`.

    Raises:
        InputError: A file is truncated or not what its name says.
    """
    merged = Weights({}, {})
    for path in files:
        opened = _open_safetensors(path) if path.suffix == ".safetensors" else _open_bin(path)
        merged.shapes.update(opened.shapes)
        merged.readers.update(opened.readers)
        merged.metadata.update(opened.metadata)
    return merged


def _open_safetensors(path: Path) -> Weights:
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is truncated or not a .safetensors file ({error}); download it again"
        ) from error
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    readers = {name: (lambda n=name: file.get_tensor(n)) for name in shapes}
    return Weights(shapes, readers, file.metadata() or {})


def _open_bin(path: Path) -> Weights:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # unpickling damaged or hostile bytes can raise anything
        reason = str(error).splitlines()[0][:150] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is truncated, or holds more than tensors ({reason}); download it again"
        ) from error
    if not isinstance(state, dict) or not all(_is_plain(n, t) for n, t in state.items()):
        raise InputError(f"{path} does not hold a table of tensors; download it again")
    shapes = {name: tuple(t.shape) for name, t in state.items()}
    return Weights(shapes, {name: (lambda t=t: t) for name, t in state.items()})


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
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            return _shards(folder, index)
        if (folder / f"{stem}.{suffix}").is_file():
            return [folder / f"{stem}.{suffix}"]
        if shards := sorted(folder.glob(f"{stem}-*-of-*.{suffix}")):
            return _complete(folder, shards)
    raise InputError(
        f"{folder} has no model*.safetensors and no pytorch_model*.bin; "
        "put the downloaded weight files there"
    )


def _complete(folder: Path, shards: list[Path]) -> list[Path]:
    """The shards, if they are as many as their names (`model-00001-of-00002`) say."""
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
        if not (folder / name).is_file():
            raise InputError(f"{folder} lacks {name}, which {index.name} lists; download it too")
    return [folder / name for name in names]


def read_json(path: Path) -> dict:
    """A JSON object from a file.

    Raises:
        InputError: The file does not hold one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object; download it again")
    return value
