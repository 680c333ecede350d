"""The contents of a folder or file, checked before a tensor is read."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..faid import AdapterConfig, FaidAdapter
from ..files import GGUF
from ..grid import Grid
from ..models.janus.layouts import (
    blender_config,
    blender_names,
    our_names,
    read_blenders,
    read_config,
    section,
)
from ..models.janus.model import JanusConfig, JanusPro
from .shapes import check_shapes
from .weights import Weights, find_weight_files, open_weights, read_json

FORMAT = "arrag-model"

VERSION = "1"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose names, sizes and shapes are checked and whose tensors are still unread."""

    weights: Weights
    names: dict[str, str]
    """From the file's tensor names to the engine's."""
    janus: JanusConfig
    config: dict[str, Any]
    tokenizer: str | Path
    blender_names: dict[str, str]
    """From the file's tensor names to those in `FaidAdapter`."""
    blenders: AdapterConfig | None


def open_checkpoint(path: Path, grid: Grid | None = None) -> Opened:
    """Read the headers of a folder or file, and check that it is a complete model.

    Raises:
        InputError: Missing, truncated, wrong-shaped or unknown files; names what to do.
    """
    weights, config, tokenizer, own_grid = _find(Path(path))
    names = our_names(list(weights.shapes))
    shapes = {ours: weights.shapes[name] for name, ours in names.items()}
    janus = read_config(shapes, config, grid or own_grid)
    check_shapes(JanusPro, (janus,), shapes, path)
    blenders = blender_names(list(weights.shapes))
    shapes = {ours: weights.shapes[name] for name, ours in blenders.items()}
    faid = read_blenders(shapes)
    if faid is not None:
        check_shapes(FaidAdapter, (janus, faid), shapes, path)
        _compare_config(faid, janus, config, path)
    return Opened(weights, names, janus, config, tokenizer, blenders, faid)


def _compare_config(
    faid: AdapterConfig, janus: JanusConfig, config: dict[str, Any], path: Path
) -> None:
    """Warn when the config describes other blenders than the tensors; the tensors count."""
    stated = section(config, "language_config")
    meant = blender_config(faid, janus.llama.num_layers) | {"num_hop": list(faid.hops)}
    if any(name in stated and stated[name] != value for name, value in meant.items()):
        log.warning(
            "%s: the config describes other FAiD blenders than the tensors; layers %s with hops "
            "%s, from the tensors, are used",
            path,
            list(faid.blender_layers),
            list(faid.hops),
        )


def _find(path: Path) -> tuple[Weights, dict[str, Any], str | Path, Grid | None]:
    """(weights, config, tokenizer, grid from our own header) of a folder or file."""
    if not path.exists():
        raise InputError(f"there is no model at {path}")
    if path.suffix == ".gguf":
        raise InputError(f"{path} is {GGUF}")
    if path.is_file() and path.suffix not in (".safetensors", ".bin"):
        raise InputError(f"{path} is neither a folder nor a .safetensors or .bin file")
    folder = path if path.is_dir() else path.parent
    weights = open_weights(find_weight_files(path) if path.is_dir() else [path])
    if weights.metadata.get("format") == FORMAT:
        return _own_header(path, weights)
    config, tokenizer = folder / "config.json", folder / "tokenizer.json"
    if not config.is_file():
        missing = [file.name for file in (config, tokenizer) if not file.is_file()]
        raise InputError(
            f"{' and '.join(missing)} missing: put the model's {' and '.join(missing)} into "
            f"{folder} beside the weights"
        )
    return weights, read_json(config), tokenizer, None


def _own_header(
    path: Path, weights: Weights
) -> tuple[Weights, dict[str, Any], str | Path, Grid | None]:
    header = weights.metadata
    if header.get("version") != VERSION:
        raise InputError(
            f"{path} has model version {header.get('version')!r}, this program reads {VERSION}; "
            "update the program or convert the model again"
        )
    try:
        config = json.loads(header["config"])
        grid = Grid.parse(header["grid"])
        if not isinstance(config, dict):
            raise TypeError
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the header of {path} is damaged; convert the model again") from error
    return weights, config, header.get("tokenizer", ""), grid
