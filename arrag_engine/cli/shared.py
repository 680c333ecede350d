"""What the commands have in common: devices, model flags, checks of paths."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from .. import shipped
from ..bounds import POSITION_WEIGHT, RECALL_TARGET
from ..grid import BORDERS, NEIGHBORHOODS
from ..index import KEY_SPACES, STRUCTURES, KeySpec, SearchChoice
from ..paths import check_folder, check_readable, given_name
from ..settings import DTYPE_CHOICES
from .parser import number
from .progress import follow, progress_bar

if TYPE_CHECKING:
    from ..checkpoints import Checkpoint

Command = Callable[[Callable[[argparse.Namespace], int]], argparse.ArgumentParser]
"""Adds a command named after the function that runs it, and returns its parser."""
SHELVES = {"model": shipped.MODELS, "index": shipped.INDEXES, "adapter": shipped.ADAPTERS}
"""Options that are a path or a shipped name."""


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="pocket", check=given_name, help="path or shipped name")
    add("--dtype", choices=DTYPE_CHOICES, default="auto", help="decoder's dtype; auto = by device")
    add(
        "--device",
        default="auto",
        check=given_name,
        help="cpu, cuda, cuda:1 or mps; auto = the fastest here",
    )


def add_search_flags(parser: argparse.ArgumentParser) -> None:
    default = SearchChoice()
    parser.add_argument(
        "--structure",
        choices=STRUCTURES,
        default=default.structure,
        help="search structure of the index; auto = by size",
    )
    parser.add_argument(
        "--recall-target",
        **number(RECALL_TARGET),
        default=default.recall_target,
        help="share of the true 64 nearest patches that a search must find; 1 = exact search",
    )


def add_key_flags(parser: argparse.ArgumentParser, new: KeySpec | None = None) -> None:
    """Flags of the keys; None where not passed: as built, or as in `new`."""

    def default(field: str) -> str:
        return "default: " + ("as built" if new is None else str(getattr(new, field)))

    add = parser.add_argument
    add(
        "--neighborhood",
        choices=NEIGHBORHOODS,
        help=f"positions around a patch that form its key ({default('neighborhood')})",
    )
    add(
        "--borders",
        choices=BORDERS,
        help=f"missing neighbours: skip the position, or zeros ({default('borders')})",
    )
    add("--key-space", choices=KEY_SPACES, help=f"vectors of the keys ({default('space')})")
    add(
        "--position-weight",
        **number(POSITION_WEIGHT),
        help=f"weight of the position; 0 = ignored ({default('position_weight')})",
    )


def key_spec(a: argparse.Namespace, default: KeySpec) -> KeySpec:
    """`default`, but for what `add_key_flags` were set to."""
    passed = {
        "neighborhood": a.neighborhood,
        "borders": a.borders,
        "space": a.key_space,
        "position_weight": a.position_weight,
    }
    return replace(default, **{name: value for name, value in passed.items() if value is not None})


def load_model(a: argparse.Namespace) -> Checkpoint:
    from ..api import choose_device, load_model

    device = str(choose_device(a.device, "--device"))
    with progress_bar("tensor") as bar:
        return load_model(a.model, a.dtype, device, follow(bar))


def check_inputs(a: argparse.Namespace) -> None:
    """Check before the work that each file or folder to read can be read.

    Raises:
        InputError: One of them is missing or cannot be read.
    """
    for name, shelf in SHELVES.items():
        if (given := getattr(a, name, None)) is not None:
            shipped.resolve(given, shelf)
    images = getattr(a, "images", ())
    for place in images if isinstance(images, (list, tuple)) else [check_folder(images)]:
        check_readable(place)


def check_adapter(name: str | None) -> None:
    """The same of what is in an adapter file.

    Raises:
        InputError: It is none, or damaged.
    """
    if name is not None:
        from ..checkpoints.adapter import open_adapter

        open_adapter(shipped.resolve(name, shipped.ADAPTERS))
