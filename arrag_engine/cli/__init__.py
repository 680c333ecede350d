"""`python -m arrag_engine`: draw, build and edit indexes, look into files, verify.

A command line is parsed and checked before PyTorch is imported: modules that need it are imported
inside the functions of the commands.

Exit codes: 0 done, 2 the input is at fault (one sentence on stderr), 1 anything else.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable

from ..errors import InputError, printable
from . import build, calibrate, evaluate, generate, indexes, inspect, models, train
from .needs import check_needs
from .parser import Parser

FAMILIES = (generate, build, indexes, inspect, models, train, evaluate, calibrate)
"""Modules with commands, in the order of the help."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # some consoles cannot print λ
    try:
        arguments = make_parser().parse_args(argv)
    except InputError as error:
        return _refused(error)
    try:
        check_needs(arguments)
        return arguments.run(arguments)
    except InputError as error:
        return _refused(error)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(printable(f"error: {error.filename}: {error.strerror}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(_stopped(arguments), file=sys.stderr)
        return 1


def _refused(error: InputError) -> int:
    print(f"error: {printable(str(error))}", file=sys.stderr)
    return 2


def make_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = Parser(
        prog="python -m arrag_engine", description="Retrieval-augmented image generation (AR-RAG)."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", help="what to do")

    def command(run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        name = run.__name__.strip("_").replace("_", "-")
        sub = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        sub.set_defaults(run=run, command=name, resumes=False)
        return sub

    for family in FAMILIES:
        family.add_commands(command)
    return parser


def _stopped(a: argparse.Namespace) -> str:
    if not a.resumes:
        return "stopped"
    same = "the same command without --fresh" if "--fresh" in a.given else "the same command"
    return f"stopped; {same} continues"
