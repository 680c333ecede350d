"""`eval sweep`: draw a benchmark at several values of settings; one table and one plot."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bounds import NEIGHBOURS, RETRIEVAL_TEMPERATURE, TOP_K, WEIGHT, Bound, check_choice
from ..errors import InputError
from ..evaluate.benchmark import Progress, evenly
from ..evaluate.results import read_dpg_results, read_geneval_results
from ..files import write_text
from ..grid import NEIGHBORHOODS
from ..paths import check_work_folder
from .eval_lists import (
    LISTS,
    add_list_flags,
    checked_methods,
    draw_run,
    load_drawer,
    read_list,
    run_facts,
)
from .eval_report import aligned
from .layers import weight_of
from .progress import Bars

if TYPE_CHECKING:
    from ..evaluate.pictures import Pictures
    from ..evaluate.prompt_lists import PromptList

VARIED: dict[str, Bound | tuple[str, ...]] = {
    "weight": WEIGHT,
    "retrieval-temperature": RETRIEVAL_TEMPERATURE,
    "neighbours": NEIGHBOURS,
    "neighborhood": tuple(NEIGHBORHOODS),
    "top-k": TOP_K,
}
"""Options that can be varied, with their values: λ, τ, K, the keys and the sampling's top-k."""
MOST = 64
"""Points of a sweep."""
SCORED = ("score", "copied", "variety")
"""Columns that are shares, and lines of the plot."""
RESULTS = {"geneval": "results.jsonl", "dpg": "results.txt"}
"""What the official scorer is to write into the folder of a point."""


@dataclass(frozen=True)
class Point:
    """Values of the varied options, and what was found with them."""

    values: Mapping[str, Any]
    facts: Mapping[str, float | None]

    @property
    def label(self) -> str:
        return label_of(self.values)


def label_of(values: Mapping[str, Any]) -> str:
    """The name of a point, and of its folder."""
    return ",".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in values.items()
    )


def add_sweep_parser(suites: Any, parser_class: Any, add_suite: Callable[[Any], Any]) -> None:
    told = "draw a benchmark at several values of settings: one table and one plot"
    parser = suites.add_parser("sweep", help=told, description=f"{told[0].upper()}{told[1:]}.")
    benchmarks = parser.add_subparsers(
        dest="suite",
        required=True,
        metavar="BENCHMARK",
        help="what to draw",
        parser_class=parser_class,
    )
    for name, (what, prompts) in LISTS.items():
        one = benchmarks.add_parser(name, help=what, description=f"Sweep: {what}.")
        add_list_flags(one, name, prompts)
        one.set_defaults(run=sweep_list, methods="daid")
        _add_vary(one)
    for one in add_suite(benchmarks):
        one.set_defaults(run=sweep_suite, methods="daid", seeds=2, resumes=True)
        _add_vary(one)


def _add_vary(parser: argparse.ArgumentParser) -> None:
    add: Callable[..., Any] = parser.add_argument
    add(
        "--vary",
        required=True,
        action="append",
        metavar="NAME=V1,V2,…",
        help=f"values of {', '.join(VARIED)}; repeated, all combinations are drawn",
    )


def sweep_points(vary: Sequence[str]) -> list[dict[str, Any]]:
    """All combinations of the values.

    Raises:
        InputError: A name or value that cannot be used, a name that is given twice, or too many
            combinations.
    """
    axes: dict[str, list[Any]] = {}
    for text in vary:
        name, _, values = text.partition("=")
        check_choice("--vary", name, tuple(VARIED))
        if name in axes:
            raise InputError(f"--vary {name} is passed twice; list all of its values in one")
        axes[name] = [_value(name, value.strip()) for value in values.split(",")]
    points = [dict(zip(axes, one, strict=True)) for one in itertools.product(*axes.values())]
    if len(points) > MOST:
        raise InputError(f"--vary has {len(points)} combinations, at most {MOST} are drawn")
    return list({label_of(point): point for point in points}.values())


def _value(name: str, text: str) -> Any:
    known, called = VARIED[name], f"--vary {name}"
    if isinstance(known, tuple):
        return check_choice(called, text, known)
    try:
        value = weight_of(text) if name == "weight" else (int if known.whole else float)(text)
    except ValueError as error:
        raise InputError(f"{called} is {text!r}; choose {known}") from error
    return known.check(value, called)


def sweep_list(a: argparse.Namespace) -> int:
    """Draw a list of prompts at each point."""
    points, out = sweep_points(a.vary), a.out
    methods = checked_methods(a)
    if len(methods) > 1 or methods == ["plain"]:
        raise InputError(f"--methods is {a.methods}; a sweep draws one method that retrieves")
    check_steered(a, points[0])
    prompts = read_list(a.suite, a)
    drawer, found = load_drawer(a, methods), []
    with Bars() as bars:
        for values in points:
            one = at_point(a, values, out)
            done = draw_run(one, methods, prompts, drawer, counted_at(values, bars))
            results = [done[key] for key in keys_of(a, methods[0], prompts) if key in done]
            found.append(Point(values, listed_facts(results) | scored(one.out, a.suite)))
    return told(found, out, a.suite, methods[0])


def check_steered(a: argparse.Namespace, values: Mapping[str, Any]) -> None:
    """Refuse to vary what steers an index where the layers of a file have values of their own.

    Raises:
        InputError: That is so.
    """
    idle = [name for name in values if name != "top-k"] if a.index is None else []
    if idle:
        raise InputError(
            f"--vary {idle[0]} steers the index of --index, not the layers of --layers; pass "
            "--index, or vary top-k"
        )


def keys_of(a: argparse.Namespace, method: str, prompts: PromptList) -> list[str]:
    """What the journal of a point calls the drawings of this command; former ones may be of
    another method or of other prompts."""
    from ..evaluate.journal import name_of
    from ..evaluate.listed import key_of

    return [name_of(key_of(entry, method)) for entry in evenly(prompts.entries, a.limit)]


def at_point(a: argparse.Namespace, values: Mapping[str, Any], out: Path) -> argparse.Namespace:
    """The flags with the values of a point, and its folder."""
    changed = {name.replace("-", "_"): value for name, value in values.items()}
    return argparse.Namespace(**{**vars(a), **changed, "out": out / label_of(values)})


def listed_facts(results: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    pictures = sum(len(result["seeds"]) for result in results)
    facts: dict[str, float | None] = {}
    for name in ("copied", "variety"):
        values = [result[name] for result in results if name in result]
        facts[name] = sum(values) / len(values) if values else None
    facts["s a picture"] = sum(result["seconds"] for result in results) / max(1, pictures)
    return facts


def scored(folder: Path, suite: str) -> dict[str, float | None]:
    """The official score, from 0 to 1, once the scorer has written its results."""
    if suite not in RESULTS or not (path := folder / RESULTS[suite]).is_file():
        return {"score": None}
    if suite == "geneval":
        overall = read_geneval_results(path).overall
        return {"score": overall.mean if overall else None}
    overall = read_dpg_results(path).overall
    return {"score": overall.mean / 100 if overall else None}


def counted_at(values: Mapping[str, Any], bars: Bars) -> Progress:
    """Progress of a point: each has bars of its own."""
    return lambda unit, done, total, note="": bars(
        f"{unit} at {label_of(values)}", done, total, note
    )


def sweep_suite(a: argparse.Namespace) -> int:
    """Draw a suite of the repository at each point; its score is the share of right pictures."""
    from .evaluate import load_suite, open_suite, suite_seeds

    points = sweep_points(a.vary)
    methods, found = a.methods.split(","), []
    if a.out is None or len(methods) > 1:
        missing = "--out is missing" if a.out is None else f"--methods is {a.methods}"
        raise InputError(f"{missing}; a sweep draws one method into a folder")
    check_work_folder(a.out)
    with Bars() as bars:
        checkpoint, benchmark, settings = open_suite(a, bars)
        from ..evaluate.journal import open_journal
        from ..evaluate.run import draw_parts

        for values in points:
            changed = load_suite(a.suite).varied(benchmark, values)
            folder, counted = a.out / label_of(values), counted_at(values, bars)
            facts = run_facts(a, checkpoint.model.device)
            with open_journal(folder, settings | {"varied": values}, facts) as journal:
                drawn = draw_parts(checkpoint, changed, methods, suite_seeds(a), counted, journal)
                found.append(Point(values, suite_facts([part for _, part in drawn])))
    return told(found, a.out, a.suite, methods[0])


def suite_facts(parts: Sequence[Pictures]) -> dict[str, float | None]:
    """Means over the kinds of a suite."""
    import numpy as np

    from ..evaluate.measures import seed_variety

    facts: dict[str, float | None] = {}
    for name, column in (("right", "score"), ("copied", "copied")):
        values = [mean for part in parts if (mean := part.mean(name)) is not None]
        facts[column] = float(np.mean(values)) if values else None
    if len(set(parts[0].seeds)) > 1:
        seeds = len(set(parts[0].seeds))
        tokens = np.concatenate([np.stack(part.tokens) for part in parts])
        each = [seed_variety(one) for one in tokens.reshape(-1, seeds, tokens.shape[1])]
        facts["variety"] = float(np.mean(each))
    return facts


def told(points: Sequence[Point], out: Path, suite: str, method: str) -> int:
    """Write and print the table, and write the plot."""
    from ..evaluate.plot import line_chart

    names = [
        name
        for name in (*SCORED, "s a picture")
        if any(point.facts.get(name) is not None for point in points)
    ]
    head = [*points[0].values, *names]
    rows = [
        [
            *(_shown(v) for v in point.values.values()),
            *(_shown(point.facts.get(name)) for name in names),
        ]
        for point in points
    ]
    table = aligned([head, *rows])
    if suite in RESULTS and "score" not in names:
        table += (
            f"\nNo point is scored yet: let the scorer write {RESULTS[suite]} into the folder of "
            "each point, and repeat the command."
        )
    lines = {name: [point.facts.get(name) for point in points] for name in SCORED if name in names}
    chart = line_chart([point.label for point in points], lines, f"eval sweep {suite}: {method}")
    facts = [{"method": method, **point.values, **point.facts} for point in points]
    for name, text in (
        ("sweep.txt", table + "\n"),
        ("sweep.json", json.dumps(facts, indent=1)),
        ("sweep.svg", chart),
    ):
        write_text(out / name, text)
    print(table)
    print(out / "sweep.svg")
    return 0


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
