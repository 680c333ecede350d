"""`eval report`: the scorers' results beside published figures; distances of sets of pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..bounds import shown
from ..errors import InputError
from ..evaluate.quoted import (
    DPG,
    FID_COCO,
    FID_MIDJOURNEY,
    GENEVAL,
    OVERHEAD,
    PAPER,
    QUOTED,
    README,
    Quoted,
)
from ..evaluate.results import Results, Score, read_dpg_results, read_geneval_results
from ..files import write_text
from ..paths import check_output, check_readable, given_name, given_path, is_folder, look_at
from .progress import Bars

NAMES = {
    **{"single_object": "single", "two_object": "two", "color_attr": "attributes"},
    **{"colors": "colours"},
}
"""What a table calls a category."""
MARKS = {PAPER: "[1]", README: "[2]"}


def add_report_parser(suites: Any) -> None:
    told = "print the scorers' results beside published figures, and distances of pictures"
    parser = suites.add_parser("report", help=told, description=f"{told[0].upper()}{told[1:]}.")
    parser.set_defaults(run=report)
    add: Callable[..., Any] = parser.add_argument
    many: dict[str, Any] = {"nargs": "+", "metavar": "NAME=FILE", "check": named_file}
    add("--geneval", **many, default=[], help="results.jsonl of GenEval's scorer (default: none)")
    add("--dpg", **many, default=[], help="text of DPG-Bench's scorer (default: none)")
    for name, what in (
        ("--fid", "Fréchet Inception distance"),
        ("--cmmd", "CLIP maximum mean discrepancy"),
        ("--fwd", "Fréchet wavelet distance"),
    ):
        add(
            name,
            nargs="+",
            metavar="PATH",
            check=given_name,
            help=f"{what} of NAME=PATH, … to the first PATH: folders of pictures"
            f"{'' if name == '--fwd' else ', or files of features'} (default: none)",
        )
    add(
        "--inception",
        type=Path,
        help="network of FID, torch-fidelity's weights-inception-2015-12-05-6726825d.pth (default: "
        "none)",
    )
    add(
        "--clip",
        type=Path,
        help="network of CMMD, open_clip_model.safetensors of its CLIP (default: none)",
    )
    add("--device", default="auto", check=given_name, help="where the networks run")
    add("--json", type=Path, help="file to write the figures to (default: none)")


def named_file(value: str, name: str) -> tuple[str, Path]:
    """NAME=FILE, or FILE, which is called by its name; a path that is there may itself have a `=`,
    as the folders of a sweep do.

    Raises:
        InputError: There is no such file.
    """
    label, mark, path = value.partition("=")
    whole = given_path(value, name)
    if mark and look_at(whole) is None:
        return label, check_readable(given_path(path, name))
    file = check_readable(whole)
    return file.name if is_folder(file) else file.stem, file


def check_names(named: Sequence[tuple[str, Path]], option: str) -> None:
    """Refuse two paths of one name, of which a table would show only the last.

    Raises:
        InputError: That is so.
    """
    names = [name for name, _ in named]
    twin = next((name for name in names if names.count(name) > 1), None)
    if twin is not None:
        raise InputError(
            f"{option} has {names.count(twin)} paths with the name {shown(twin)}; pass each as "
            "NAME=FILE with a name of its own"
        )


def report(a: argparse.Namespace) -> int:
    """Print what is asked for."""
    if not (a.geneval or a.dpg or a.fid or a.cmmd or a.fwd):
        raise InputError(
            "there is nothing to report; pass --geneval, --dpg, --fid, --cmmd or --fwd"
        )
    if a.json is not None:
        check_output(a.json, ".json")
    for kind in ("geneval", "dpg"):
        check_names(getattr(a, kind), f"--{kind}")
    found: dict[str, Any] = {}
    tables = []
    for kind, read, table in (
        ("geneval", read_geneval_results, geneval_table),
        ("dpg", read_dpg_results, dpg_table),
    ):
        files = getattr(a, kind)
        if files:
            results = {name: read(path) for name, path in files}
            found[kind] = {name: asdict(one) for name, one in results.items()}
            tables.append(table(results))
    distances = measured_distances(a)
    if distances:
        found["distances"] = distances
        tables.append(distance_table(distances))
    tables.append(sources())
    print(*tables, sep="\n\n")
    if a.json is not None:
        write_text(a.json, json.dumps(found, indent=1, ensure_ascii=False))
    return 0


def geneval_table(results: Mapping[str, Results]) -> str:
    rows = [_row(name, one, GENEVAL, 3) for name, one in results.items()]
    quoted = [
        _quoted_row(one, one.geneval, one.geneval_overall, len(GENEVAL), 2)
        for one in QUOTED
        if one.geneval_overall is not None
    ]
    return _table("GenEval, share of correct pictures", GENEVAL, rows, quoted, results)


def dpg_table(results: Mapping[str, Results]) -> str:
    rows = [_row(name, one, DPG, 2) for name, one in results.items()]
    quoted = [
        _quoted_row(one, one.dpg, one.dpg_overall, len(DPG), 2)
        for one in QUOTED
        if one.dpg_overall is not None
    ]
    return _table("DPG-Bench, score", DPG, rows, quoted, results)


def _row(name: str, results: Results, categories: Sequence[str], digits: int) -> list[str]:
    cells = [_shown(results.categories.get(category), digits) for category in categories]
    return [name, *cells, _shown(results.overall, digits)]


def _shown(score: Score | None, digits: int) -> str:
    if score is None:
        return "-"
    spread = "" if score.spread is None else f" ±{score.spread:.{digits}f}"
    return f"{score.mean:.{digits}f}{spread}"


def _quoted_row(
    quoted: Quoted, values: Sequence[float], overall: float | None, count: int, digits: int
) -> list[str]:
    cells = [f"{value:.{digits}f}" for value in values] or ["-"] * count
    last = "-" if overall is None else f"{overall:.{digits}f}"
    return [f"quoted {MARKS[quoted.source]} {quoted.method}", *cells, last]


def _table(
    title: str,
    categories: Sequence[str],
    rows: Sequence[Sequence[str]],
    quoted: Sequence[Sequence[str]],
    results: Mapping[str, Results],
) -> str:
    head = [title, *(NAMES.get(category, category) for category in categories), "overall"]
    lines = [aligned([head, *rows, *quoted]), "±: spread over seeds."]
    lines += [
        f"{name} is incomplete: {'; '.join(one.missing)}."
        for name, one in results.items()
        if one.missing
    ]
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows with columns of one width, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def measured_distances(a: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Distance by its name and the name of the set."""
    asked = {kind: getattr(a, kind) for kind in ("fid", "cmmd", "fwd") if getattr(a, kind)}
    for kind, paths in asked.items():
        if len(paths) < 2:
            raise InputError(f"--{kind} has one path; pass the reference and then NAME=PATH")
    if not asked:
        return {}
    sets = {
        kind: [named_file(path, f"--{kind}") for path in paths] for kind, paths in asked.items()
    }
    for kind, named in sets.items():
        check_names(named[1:], f"--{kind}")
    for name, path in sets.get("fwd", ()):
        if not path.is_dir():
            raise InputError(f"--fwd {name} is a file; FWD needs folders of pictures")
    for kind, network in (("fid", "inception"), ("cmmd", "clip")):
        pictures = [path for _, path in sets.get(kind, ()) if path.is_dir()]
        if pictures and getattr(a, network) is None:
            raise InputError(
                f"--{kind} of pictures needs a network; pass its file with --{network}, or files "
                "of features"
            )
    from ..api import choose_device

    device = choose_device(a.device, "--device")
    with Bars() as bars:
        return {kind: _distances(kind, paths, a, device, bars) for kind, paths in sets.items()}


def _distances(
    kind: str,
    paths: Sequence[tuple[str, Path]],
    a: argparse.Namespace,
    device: Any,
    bars: Bars,
) -> dict[str, float]:
    from ..evaluate import distances as d

    current = ""

    def tick(done: int, total: int) -> None:
        bars(f"{kind.upper()}: picture of {current}", done, total)

    extract: Any = None
    if any(path.is_dir() for _, path in paths):
        if kind == "fid":
            extract = d.inception(a.inception, device, tick)
        elif kind == "cmmd":
            extract = d.clip(a.clip, device, tick)
    read: Callable[[Path], Any] = {
        "fid": lambda path: d.read_moments(path, extract),
        "cmmd": lambda path: d.read_features(path, extract),
        "fwd": lambda path: d.packet_moments(path, tick),
    }[kind]
    measure: Callable[[Any, Any], float] = {"fid": d.fid, "cmmd": d.cmmd, "fwd": d.fwd}[kind]
    name, path = paths[0]
    current = f"the reference {name}"  # which may have the name of another set
    reference, found = read(path), {}
    for current, path in paths[1:]:
        found[current] = measure(read(path), reference)
    return found


def distance_table(distances: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(name for found in distances.values() for name in found))
    head = ["distance (lower is nearer)", *(kind.upper() for kind in distances)]
    rows = [
        [name, *(f"{found[name]:.3f}" if name in found else "-" for found in distances.values())]
        for name in names
    ]
    lines = [aligned([head, *rows])]
    if "fid" in distances:
        for one in QUOTED:
            told = [
                f"{data} {one.fid[data]:.2f}"
                for data in (FID_MIDJOURNEY, FID_COCO)
                if data in one.fid
            ]
            if told:
                lines.append(f"quoted {MARKS[one.source]} {one.method}: {', '.join(told)}")
    return "\n".join(lines)


def sources() -> str:
    """Where the quoted figures come from."""
    told = [f"{mark} {source}" for source, mark in MARKS.items()]
    return "\n".join(("Quoted figures were not measured here:", *told, f"[1] {OVERHEAD}."))
