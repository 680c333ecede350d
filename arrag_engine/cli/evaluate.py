"""`eval`: benchmarks, with and without retrieval.

A suite is a module with two functions: `add_flags(parser)` adds its own flags and loads no PyTorch;
`read(arguments)` reads everything but the model and returns `begin(checkpoint, index, faid,
progress)`, which makes the `Benchmark`.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .. import shipped
from ..bounds import FIRST_SEED, PICTURES_EACH
from ..errors import InputError
from ..evaluate.benchmark import METHODS, Benchmark
from ..index import load_index
from ..paths import check_work_folder, given_name
from .eval_kit import add_kit_parser
from .eval_lists import (
    adapter_digest,
    add_list_parsers,
    index_facts,
    load_drawer,
    model_facts,
    run_facts,
)
from .eval_report import add_report_parser
from .eval_sweep import add_sweep_parser
from .parser import Parser, number, some_of
from .progress import Bars
from .shared import Command, add_model_flags, check_adapter, check_inputs

if TYPE_CHECKING:
    from ..checkpoints import Checkpoint
    from ..index import PatchIndex

SUITES = {"pocket": "scripts.pocket.bench"}
"""Module of each suite, imported when it is used."""
SUITE_SETTINGS = ("suite", "seeds", "first_seed", "limit", "scorer")
"""Flags of a suite that decide its results."""
REPOSITORY = Path(__file__).resolve().parents[2]


class SuiteParser(Parser):
    """Takes its suite's own flags from the suite's module once they are needed."""

    suite: str | None = None

    def complete(self) -> None:
        """Add them.

        Raises:
            InputError: The module is not here.
        """
        if self.suite is not None:
            load_suite(self.suite).add_flags(self)
            self.suite = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.complete()
        return super().parse_known_args(args, namespace)


def load_suite(name: str) -> ModuleType:
    """The module of a suite.

    Raises:
        InputError: It is not here.
    """
    module = SUITES[name]
    if str(REPOSITORY) not in sys.path:
        sys.path.append(str(REPOSITORY))
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # a module that the suite needs
        folder = module.rpartition(".")[0].replace(".", "/")
        raise InputError(
            f"the suite {name} lies in {folder} of the repository, which is not installed; "
            f"run `python -m arrag_engine eval {name}` in a clone of the repository"
        ) from error


def add_commands(command: Command) -> None:
    suites = command(eval_).add_subparsers(
        dest="suite",
        required=True,
        metavar="SUITE",
        help="which benchmark",
        parser_class=SuiteParser,
    )
    add_suites(suites)
    add_list_parsers(suites)
    add_report_parser(suites)
    add_sweep_parser(suites, SuiteParser, add_suites)
    add_kit_parser(suites)


def add_suites(suites: Any) -> list[SuiteParser]:
    """The parsers of the suites that lie in the repository."""
    parsers = []
    for name in SUITES:
        told = f"the suite {name}"
        parser = suites.add_parser(name, help=told, description=f"Score with {told}.")
        parser.suite = name
        add_shared_flags(parser)
        parsers.append(parser)
    return parsers


def add_shared_flags(parser: argparse.ArgumentParser) -> None:
    """What all suites have in common."""
    add_model_flags(parser)
    add = parser.add_argument
    add(
        "--index",
        default="pocket",
        check=given_name,
        help="index to look patches up in: path or shipped name",
    )
    add(
        "--adapter",
        check=given_name,
        help="for the method faid: path or shipped name (default: the model's own blenders)",
    )
    add(
        "--methods",
        default="plain,daid,control",
        check=some_of(METHODS),
        help=f"some of {','.join(METHODS)}",
    )
    add("--seeds", **number(PICTURES_EACH), default=4, help="pictures of each prompt")
    add("--first-seed", **number(FIRST_SEED), default=0, help="seed of a prompt's first picture")
    add(
        "--out",
        type=Path,
        help="folder for pictures, scores.json and table.txt, and to go on in (default: none is "
        "written)",
    )


def eval_(a: argparse.Namespace) -> int:
    """Draw a benchmark's prompts with several methods and score the pictures."""
    if a.out is not None:
        check_work_folder(a.out)
    a.resumes = a.out is not None
    methods = a.methods.split(",")
    with Bars() as bars:
        opened = open_suite(a, bars)
        from ..evaluate.journal import open_journal
        from ..evaluate.run import evaluate

        checkpoint, benchmark, settings = opened
        with open_journal(a.out, settings, run_facts(a, checkpoint.model.device)) as journal:
            tables = evaluate(checkpoint, benchmark, methods, suite_seeds(a), bars, a.out, journal)
    print(tables)
    return 0


def open_suite(a: argparse.Namespace, bars: Bars) -> tuple[Checkpoint, Benchmark, dict[str, Any]]:
    """(model, benchmark, settings) of the flags of a suite."""
    check_inputs(a)
    index = load_index(shipped.resolve(a.index, shipped.INDEXES))
    check_adapter(a.adapter)
    begin = load_suite(a.suite).read(a)
    checkpoint, faid = load_drawer(a, a.methods.split(","))
    settings = suite_settings(a, checkpoint, index)
    return checkpoint, begin(checkpoint, index, faid, bars), settings


def suite_seeds(a: argparse.Namespace) -> range:
    return range(a.first_seed, a.first_seed + a.seeds)


def suite_settings(
    a: argparse.Namespace, checkpoint: Checkpoint, index: PatchIndex
) -> dict[str, Any]:
    """All that decides what a piece of work results in; its methods and kinds are in its key."""
    own = {name: str(getattr(a, name, None)) for name in SUITE_SETTINGS}
    adapter = {"adapter": adapter_digest(a.adapter)}
    return {**model_facts(checkpoint), **own, **index_facts(index), **adapter}
