"""The flags of retrieval, and files of several layers: what they say becomes `Layer`s."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import shipped
from ..bounds import (
    COPY_LIMIT,
    END,
    MAX_DISTANCE,
    NEIGHBOURS,
    RETRIEVAL_TEMPERATURE,
    RETRIEVAL_TOP_P,
    START,
    WEIGHT,
    shown,
)
from ..errors import InputError
from ..index import is_manifest, open_lookup
from ..paths import check_file, given_name
from ..settings import (
    AS_BUILT,
    BORDER_KEYS,
    CURVES,
    DISTANCES,
    DUPLICATES,
    PROMPT,
    RECOMMENDED,
    RetrievalOptions,
)
from .parser import number
from .shared import add_key_flags

if TYPE_CHECKING:
    from ..layers import Layer

MOST = 16
"""Layers of a file."""
OPTIONS = tuple(field.name for field in fields(RetrievalOptions))
KEYS = ("neighborhood", "borders", "key_space", "position_weight")
STEERING = ("start", "end", "curve", "rows", "max_distance", "copy_limit")
STEERING_FLAGS = (
    "--include",
    "--exclude",
    "--region",
    *(f"--{name.replace('_', '-')}" for name in STEERING),
)
NAMES = ("index", "only", "include", "exclude", "region", *OPTIONS, *KEYS, *STEERING)
"""What a layer of a file may say; all but `index` may be left out."""


def add_retrieval_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--index",
        check=given_name,
        help="index to look patches up in: path or shipped name, such as pocket (default: none)",
    )
    add(
        "--only",
        default=PROMPT,
        metavar="PATTERN",
        help="pictures of the index to use: {prompt} = those about the prompt's rare words (the "
        "default), '' = all, otherwise those whose caption, name or source matches",
    )
    add(
        "--include",
        action="append",
        metavar="PATTERN",
        help="use only pictures that match; =name for one picture; may be repeated (default: all)",
    )
    add(
        "--exclude",
        action="append",
        metavar="PATTERN",
        help="leave out pictures that match, in the same way (default: none)",
    )
    add(
        "--cluster",
        default="",
        metavar="ADDRESS",
        help="Ray cluster whose machines search an index in shards (default: this machine)",
    )
    add_key_flags(parser)
    add(
        "--weight",
        type=weight_of,
        check=WEIGHT.check,
        help="retrieval weight λ, or auto: as calibrated (default: recommended for the model)",
    )
    add(
        "--retrieval-temperature",
        **number(RETRIEVAL_TEMPERATURE),
        help="τ: a lower one prefers nearer patches (default: recommended for the model)",
    )
    add(
        "--neighbours",
        **number(NEIGHBOURS),
        help="K patches per query (default: recommended for the model)",
    )
    add(
        "--duplicates",
        choices=DUPLICATES,
        help="neighbours with one code: the first counts, or the sum (default: recommended)",
    )
    add(
        "--retrieval-top-p",
        **number(RETRIEVAL_TOP_P),
        help="top-p of the proposals (default: recommended)",
    )
    add(
        "--border-keys",
        choices=BORDER_KEYS,
        help="whether patches are found that lack a known neighbour, at the border of their "
        "picture, by models that draw in any order (default: recommended for the model)",
    )
    add(
        "--distances",
        choices=DISTANCES,
        help="over the known neighbours, for models that draw in any order: the mean suits one τ "
        "(default: recommended for the model)",
    )
    add_steering_flags(parser)
    add(
        "--layers",
        type=Path,
        metavar="FILE.json",
        help="more indexes at work in the same picture: a list of objects with the names of these "
        "options (default: none)",
    )


def add_steering_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--region",
        type=Path,
        metavar="PICTURE",
        help="where in the picture the index works: white = there, black = not (default: all)",
    )
    add(
        "--start",
        **number(START),
        default=0.0,
        help="share of the picture that is drawn when the index begins to work: from the top, or, "
        "for models that draw in any order, of all tokens",
    )
    add(
        "--end",
        **number(END),
        default=1.0,
        help="share at which it ends; below --start, the curve runs backwards",
    )
    add(
        "--curve",
        choices=CURVES,
        default=CURVES[0],
        help="weight from start to end: growing from 0, or by --rows",
    )
    add(
        "--rows",
        metavar="NUMBERS",
        default="",
        help="factors of the weight from top to bottom, such as '1 1 0.5 0', for --curve rows",
    )
    add(
        "--max-distance",
        **number(MAX_DISTANCE),
        default=0.0,
        help="largest squared distance of a patch that is used; 0 = no limit",
    )
    add(
        "--copy-limit",
        **number(COPY_LIMIT),
        default=0,
        help="most connected tokens copied from one picture of the index; 0 = no limit",
    )


def weight_of(text: str) -> float | Literal["auto"]:
    return "auto" if text == "auto" else float(text)


def check_layer_flags(a: argparse.Namespace) -> None:
    """Refuse flags of an index without an index, before anything is loaded.

    Raises:
        InputError: That is so, or a file cannot be read.
    """
    idle = sorted(set(STEERING_FLAGS) & a.given) if a.index is None else []
    if idle:
        raise InputError(f"{idle[0]} steers an index; pass one with --index")
    for path in (a.region, a.layers):
        if path is not None:
            check_file(path)
    if a.layers is not None:
        read_layers(a.layers)
    if a.cluster and not any(is_manifest(Path(facts["index"])) for facts, _ in told_layers(a)):
        raise InputError(
            "--cluster is for an index in shards; pass the manifest of one (.json) with --index"
        )


def chosen_layers(a: argparse.Namespace) -> list[Layer]:
    """The layer of the flags, and those of the file."""
    return [make_layer(*told, a.cluster) for told in told_layers(a)]


def told_layers(a: argparse.Namespace) -> list[tuple[dict[str, Any], Path]]:
    """What the flags and the file say of each layer: facts by `NAMES`, and the folder that a
    relative path of its region starts from."""
    own = [] if a.index is None else [(_flags(a), Path())]
    if a.layers is None:
        return own
    return [*own, *((facts, a.layers.parent) for facts in read_layers(a.layers))]


def _flags(a: argparse.Namespace) -> dict[str, Any]:
    """The flags by the names of a file."""
    facts = {name: getattr(a, name, None) for name in NAMES}
    facts |= {"temperature": a.retrieval_temperature, "top_p": a.retrieval_top_p}
    facts |= {name: "\n".join(getattr(a, name) or ()) for name in ("include", "exclude")}
    facts |= {"region": None if a.region is None else str(a.region)}
    return {name: value for name, value in facts.items() if value is not None}


def read_layers(path: Path) -> list[dict[str, Any]]:
    """The layers that a file describes.

    Raises:
        InputError: It is not a list of objects with names of `NAMES`, or names an index that is not
            there.
    """
    try:
        layers = json.loads(check_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON ({str(error)[:80]})") from error
    if not isinstance(layers, list) or not 1 <= len(layers) <= MOST:
        raise InputError(f"{path} must hold a list of 1 to {MOST} layers")
    for number_, layer in enumerate(layers, start=1):
        _check_layer(layer, f"layer {number_} of {path}")
    return layers


def _check_layer(layer: Any, name: str) -> None:
    if not isinstance(layer, dict) or not isinstance(layer.get("index"), str):
        raise InputError(f"{name} names no index; write an object such as {{'index': 'pocket'}}")
    if unknown := sorted(layer.keys() - set(NAMES)):
        raise InputError(f"{name} has {shown(unknown[0])}; known are {', '.join(NAMES)}")
    if not isinstance(layer.get("region", ""), str):
        raise InputError(
            f"{name} has the region {shown(layer['region'])}; write the path of a mask"
        )
    shipped.resolve(layer["index"], shipped.INDEXES)


def make_layer(facts: Mapping[str, Any], folder: Path, cluster: str = "") -> Layer:
    """The layer of facts by `NAMES`.

    Args:
        folder: What a relative path of a region starts from.
        cluster: Address of the Ray cluster that searches an index in shards.

    Raises:
        InputError: A value cannot be used.
    """
    from ..images import read_mask
    from ..layers import KeyChoice, Layer
    from ..retrieval import Steering, row_weights

    index = open_lookup(shipped.resolve(facts["index"], shipped.INDEXES), cluster)
    # Recommended keys belong to the recommended weight. With a weight, 0.1 used the keys as built.
    base = RECOMMENDED if facts.get("weight") is None else AS_BUILT
    neighborhood, borders, space = (facts.get(name, base) for name in KEYS[:3])
    steering = {name: facts[name] for name in STEERING if name in facts}
    if isinstance(rows := steering.get("rows", ""), str):
        steering["rows"] = row_weights(rows)
    else:
        steering["rows"] = rows if isinstance(rows, list) else [rows]
    if "region" in facts:
        steering["region"] = read_mask(check_file(folder / facts["region"]))
    return Layer(
        index,
        facts.get("only", PROMPT),
        KeyChoice(neighborhood, borders, space, facts.get("position_weight")),
        **{name: facts[name] for name in OPTIONS if name in facts},
        include=facts.get("include", ""),
        exclude=facts.get("exclude", ""),
        steering=Steering(**steering),
    )
