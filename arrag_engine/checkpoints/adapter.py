"""Adapter files: the weights that FAiD training made, for any copy of their base."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from ..bounds import MAX_CANDIDATES, MAX_RANK
from ..errors import InputError
from ..faid import FaidAdapter, assemble, order_for, order_name
from ..files import atomic_write
from ..index import PatchIndex
from ..models import ops as default_ops
from ..models.families import Sizes
from ..settings import ADAPTER_ORDERS, HOPS, AdapterConfig
from .loading import Checkpoint
from .shapes import check_shapes
from .weights import Weights, open_weights

FORMAT = "arrag-adapter"
VERSION = "1"


@dataclass(frozen=True)
class AdapterInfo:
    """The header of an adapter file."""

    config: AdapterConfig
    base: str
    """Name of the model it was trained on."""
    base_fingerprint: str
    hidden_size: int
    index: str = ""
    """Name of the index it was trained with."""
    index_fingerprint: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    """Settings and results of the training."""


@dataclass(frozen=True)
class OpenedAdapter:
    """An adapter file whose header is checked and whose tensors are still unread."""

    path: Path
    info: AdapterInfo
    weights: Weights


def index_fingerprint(index: PatchIndex) -> str:
    """A hash of the tokens of an index and of the codebook that gives them meaning."""
    digest = hashlib.sha256(np.ascontiguousarray(index.codebook).tobytes())
    for grid in index.tokens:
        digest.update(np.ascontiguousarray(grid).tobytes())
    return digest.hexdigest()[:16]


def save_adapter(
    path: Path, adapter: FaidAdapter, info: AdapterInfo, dtype: torch.dtype = torch.float16
) -> None:
    """Write an adapter that is not folded.

    Raises:
        InputError: The file cannot be written.
    """
    header = {"format": FORMAT, "version": VERSION, "info": json.dumps(asdict(info))}
    tensors = {
        name: tensor.detach().cpu().to(dtype).contiguous()
        for name, tensor in adapter.state_dict().items()
    }
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, header)


def is_adapter(path: Path) -> bool:
    """Whether the header names the format of an adapter; the rest may be damaged."""
    if not (path.is_file() and path.suffix == ".safetensors"):
        return False
    try:
        return open_weights([path]).metadata.get("format") == FORMAT
    except InputError:
        return False


def open_adapter(path: Path) -> OpenedAdapter:
    """Read and check the header of an adapter file.

    Raises:
        InputError: Not an adapter file, damaged, or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no adapter file {path}")
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path} is not a .safetensors file; choose an adapter made by 'train faid'"
        )
    weights = open_weights([path])
    header = weights.metadata
    if header.get("format") != FORMAT:
        raise InputError(
            f"{path} is not an adapter (the format in its header is {header.get('format')!r}); "
            "make one with 'python -m arrag_engine train faid'"
        )
    if header.get("version") != VERSION:
        raise InputError(
            f"{path} has adapter version {header.get('version')!r}, this program reads {VERSION}; "
            "update the program or train the adapter again"
        )
    try:
        info = _read_info(json.loads(header["info"]))
    except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise InputError(f"the header of {path} is damaged; copy the adapter again") from error
    return OpenedAdapter(path, info, weights)


def _read_info(table: dict[str, Any]) -> AdapterInfo:
    parts = dict(table["config"])
    layers, hops = tuple(parts.pop("blender_layers")), tuple(parts.pop("hops"))
    config = AdapterConfig(layers, hops, **parts)
    sound = (
        all(type(i) is int for i in layers)
        and hops in HOPS
        and type(config.rank) is int
        and 0 <= config.rank <= MAX_RANK
        and type(config.alpha) in (int, float)
        and math.isfinite(config.alpha)
        and type(config.dropout) in (int, float)
        and 0 <= config.dropout <= 1
        and type(config.head) is bool
        and type(config.candidates) is int
        and 1 <= config.candidates <= MAX_CANDIDATES
        and config.order in ADAPTER_ORDERS
    )
    info = AdapterInfo(**{**table, "config": config})
    texts = (info.base, info.base_fingerprint, info.index, info.index_fingerprint)
    if not sound or not all(isinstance(text, str) for text in texts):
        raise ValueError("malformed")
    if type(info.hidden_size) is not int or not isinstance(info.training, dict):
        raise ValueError("malformed")
    return info


def load_adapter(
    path: Path,
    base: Checkpoint,
    dtype: torch.dtype,
    ops: Any = default_ops,
    progress: Callable[[int, int], None] | None = None,
    fold_on: torch.device | None = None,
) -> FaidAdapter:
    """An adapter for drawing with `base`, its blenders folded.

    Args:
        dtype: The base's.
        progress: Called with (parts done, parts in all).
        fold_on: The device that folds the blenders.

    Raises:
        InputError: As `open_adapter`, or it was trained on another model.
    """
    opened = open_adapter(path)
    config = base.model.config
    check_order(opened, base)
    check_base(opened, base.name, base.fingerprint, config.decoder.hidden_size)
    check_tensors(opened, config)
    return assemble(config, opened.info.config, opened.weights.read, dtype, ops, progress, fold_on)


def check_order(opened: OpenedAdapter, base: Checkpoint) -> None:
    """Refuse a base of another family than that of an adapter.

    Raises:
        InputError: It draws in another order.
    """
    order, own = opened.info.config.order, base.model.order
    if order != order_for(own):
        raise InputError(
            f"the adapter {opened.path.stem} was trained on {opened.info.base[:80]!r}, which draws "
            f"in {order_name(order)}, the model {base.name!r} draws in {own.name}; load "
            f"{opened.info.base[:80]!r}, or train an adapter for {base.name!r}"
        )


def check_base(opened: OpenedAdapter, name: str, fingerprint: str, hidden: int) -> None:
    """Refuse a base that an adapter was not trained on.

    Args:
        name: The name of the base in messages.
        hidden: Its width.

    Raises:
        InputError: The fingerprint or the width is another one.
    """
    info = opened.info
    if info.base_fingerprint == fingerprint and info.hidden_size == hidden:
        return
    differ = f"width {info.hidden_size} against {hidden}"
    if info.hidden_size == hidden:
        differ = f"weights {info.base_fingerprint[:8]} against {fingerprint[:8]}"
    raise InputError(
        f"the adapter {opened.path.stem} was trained on {info.base[:80]!r}, this model is {name!r} "
        f"({differ}); load {info.base[:80]!r}, or train an adapter for {name!r}"
    )


def check_tensors(opened: OpenedAdapter, base: Sizes) -> None:
    """Refuse tensors that do not have the shapes of the header's adapter for this base.

    Raises:
        InputError: A tensor is missing, unknown or of another shape.
    """
    layers = opened.info.config.blender_layers
    if not all(0 <= i < base.decoder.num_layers for i in layers):
        raise InputError(f"the header of {opened.path} is damaged; copy the adapter again")
    kind = "FAiD adapter of its header's sizes"
    check_shapes(FaidAdapter, (base, opened.info.config), opened.weights.shapes, opened.path, kind)
