"""Comparing the names and shapes of a file's tensors with those of a module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..models.janus.layouts import official_name as janus_name
from ..models.layouts import Shapes


def check_shapes(
    kind: Callable[..., nn.Module],
    sizes: tuple[Any, ...],
    found: Shapes,
    path: Path,
    name: str = "Janus-Pro",
    official_name: Callable[[str], str] = janus_name,
) -> None:
    """Compare the tensors of a file with those that a module of these sizes has.

    Args:
        name: Of the model, in messages.
        official_name: What the file calls one of the engine's tensors.

    Raises:
        InputError: Missing, unknown, or of another shape.
    """
    with torch.device("meta"):
        module = kind(*sizes)
    wanted = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    if missing := sorted(wanted.keys() - found.keys()):
        raise InputError(
            f"{path} lacks {len(missing)} tensors, the first is {official_name(missing[0])}; "
            "download all of its files"
        )
    if unknown := sorted(found.keys() - wanted.keys()):
        raise InputError(
            f"{path} has {len(unknown)} tensors that no {name} has, the first is "
            f"{official_name(unknown[0])}; choose the weights of a {name}"
        )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise InputError(
                f"{path}: {official_name(name)} has shape {list(found[name])}, expected "
                f"{list(shape)}; download it again"
            )
