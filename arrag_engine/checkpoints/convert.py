"""Checkpoints as one self-contained file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_write
from ..grid import Grid
from .opening import FORMAT, VERSION, open_checkpoint
from .tokenizer import read_tokenizer


def convert_checkpoint(
    source: Path, out: Path, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write any loadable checkpoint as one self-contained file, in the dtypes it is stored in.

    Raises:
        InputError: The source does not load, has no tokenizer, or `out` cannot be written.
    """
    opened = open_checkpoint(source)
    tokenizer = read_tokenizer(opened.tokenizer, opened.tokenizer_owner)
    targets = {name: opened.official_name(ours) for name, ours in opened.names.items()}
    targets |= {name: f"language_model.model.{ours}" for name, ours in opened.blender_names.items()}
    tensors: dict[str, Tensor] = {}
    for done, (name, target) in enumerate(targets.items(), start=1):
        tensors[target] = opened.weights.read(name)
        if progress is not None:
            progress(done, len(targets))
    write_checkpoint(out, tensors, opened.sizes.grid, opened.config, tokenizer)


def write_checkpoint(
    path: Path, tensors: dict[str, Tensor], grid: Grid, config: dict[str, Any], tokenizer_json: str
) -> None:
    """Write one `.safetensors`: tensors by official name, grid, config and tokenizer in its header.

    Raises:
        InputError: The file cannot be written.
    """
    header = {
        "format": FORMAT,
        "version": VERSION,
        "grid": str(grid),
        "config": json.dumps(config),
        "tokenizer": tokenizer_json,
    }
    with atomic_write(path) as temporary:
        save_file(_apart(tensors), temporary, header)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, none of which shares its memory with another: a `.bin` file may tie
    weights, which `.safetensors` does not support."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart
