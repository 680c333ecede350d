"""The contents of a folder or file, checked before a tensor is read."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..faid import AdapterConfig, FaidAdapter
from ..files import GGUF
from ..grid import Grid
from ..models.families import Sizes
from ..models.janus import layouts as janus
from ..models.janus.layouts import blender_config, blender_names, read_blenders
from ..models.janus.model import JanusConfig, JanusPro
from ..models.layouts import section
from ..models.showo import layouts as showo
from ..models.showo.model import ShowO
from .shapes import check_shapes
from .weights import Weights, find_weight_files, open_weights, read_json

FORMAT = "arrag-model"

VERSION = "1"
PICTURE_TOKENIZER = "magvitv2"
"""The subfolder of a Show-o folder that has its picture tokenizer."""
TEXT_MODEL = "microsoft/phi-1_5"
"""Whose tokenizer.json Show-o needs."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose names, sizes and shapes are checked and whose tensors are still unread."""

    path: Path
    weights: Weights
    names: dict[str, str]
    """From the file's tensor names to the engine's."""
    sizes: Sizes
    config: dict[str, Any]
    tokenizer: str | Path
    blender_names: dict[str, str] = field(default_factory=dict)
    """From the file's tensor names to those in `FaidAdapter`."""
    blenders: AdapterConfig | None = None
    rows: dict[str, slice] = field(default_factory=dict)
    """By the engine's names, the rows of a tensor that drawing needs, if not all."""

    @property
    def janus(self) -> JanusConfig:
        """Sizes of a Janus-Pro.

        Raises:
            InputError: It is another model.
        """
        if not isinstance(self.sizes, JanusConfig):
            raise InputError(f"{self.path} is a Show-o model; choose a Janus-Pro model")
        return self.sizes

    @property
    def tokenizer_owner(self) -> str:
        """Whose tokenizer.json belongs to it."""
        return "the model" if isinstance(self.sizes, JanusConfig) else TEXT_MODEL

    def official_name(self, ours: str) -> str:
        """The official checkpoint name of one of the engine's tensors."""
        family = janus if isinstance(self.sizes, JanusConfig) else showo
        return family.official_name(ours)


def open_checkpoint(path: Path, grid: Grid | None = None) -> Opened:
    """Read the headers of a folder or file, and check that it is a complete model.

    Args:
        grid: Of its pictures, where no file tells.

    Raises:
        InputError: Missing, truncated, wrong-shaped or unknown files; names what to do.
    """
    path = Path(path)
    weights, config, tokenizer, own_grid = _find(path)
    open_family = open_showo if showo.is_show_o(list(weights.shapes)) else _open_janus
    return open_family(path, weights, config, tokenizer, grid or own_grid)


def _open_janus(
    path: Path, weights: Weights, config: dict[str, Any], tokenizer: str | Path, grid: Grid | None
) -> Opened:
    names = janus.our_names(list(weights.shapes))
    shapes = {ours: weights.shapes[name] for name, ours in names.items()}
    sizes = janus.read_config(shapes, config, grid)
    check_shapes(JanusPro, (sizes,), shapes, path)
    blenders = blender_names(list(weights.shapes))
    shapes = {ours: weights.shapes[name] for name, ours in blenders.items()}
    faid = read_blenders(shapes)
    if faid is not None:
        check_shapes(FaidAdapter, (sizes, faid), shapes, path)
        _compare_config(faid, sizes, config, path)
    return Opened(path, weights, names, sizes, config, tokenizer, blenders, faid)


def open_showo(
    path: Path, weights: Weights, config: dict[str, Any], tokenizer: str | Path, grid: Grid | None
) -> Opened:
    """The same of Show-o's weights, joined with those of its picture tokenizer.

    Raises:
        InputError: As `open_checkpoint`.
    """
    names = showo.our_names(list(weights.shapes))
    shapes = {ours: weights.shapes[name] for name, ours in names.items()}
    sizes = showo.read_config(shapes, config, grid)
    rows, shapes = showo.picture_rows(sizes, shapes)
    check_shapes(ShowO, (sizes,), shapes, path, "Show-o", showo.official_name)
    return Opened(path, weights, names, sizes, config, tokenizer, rows=rows)


def _compare_config(
    faid: AdapterConfig, sizes: JanusConfig, config: dict[str, Any], path: Path
) -> None:
    """Warn when the config describes other blenders than the tensors; the tensors count."""
    stated = section(config, "language_config")
    meant = blender_config(faid, sizes.llama.num_layers) | {"num_hop": list(faid.hops)}
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
    if showo.is_show_o(list(weights.shapes)):
        weights = _with_picture_tokenizer(weights, folder)
    elif showo.is_picture_tokenizer(list(weights.shapes)):
        raise InputError(
            f"{path} is the picture tokenizer of Show-o alone; choose the model folder that has it "
            f"as its subfolder {PICTURE_TOKENIZER}"
        )
    if not config.is_file():
        missing = [file.name for file in (config, tokenizer) if not file.is_file()]
        raise InputError(
            f"{' and '.join(missing)} missing: put the model's {' and '.join(missing)} into "
            f"{folder} beside the weights"
        )
    return weights, read_json(config), tokenizer, None


def _with_picture_tokenizer(weights: Weights, folder: Path) -> Weights:
    """Show-o's weights with those of its picture tokenizer, which lie in a subfolder."""
    beside = folder / PICTURE_TOKENIZER
    if not beside.is_dir():
        raise InputError(
            f"{PICTURE_TOKENIZER} missing: put the files of showlab/{PICTURE_TOKENIZER} into "
            f"{beside}"
        )
    tokenizer = open_weights(find_weight_files(beside))
    if not showo.is_picture_tokenizer(list(tokenizer.shapes)):
        raise InputError(
            f"{beside} does not hold the picture tokenizer of Show-o; put the files of "
            f"showlab/{PICTURE_TOKENIZER} there"
        )
    return weights.joined(tokenizer, showo.TOKENIZER)


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
