"""Options that need another one; they are refused without it before anything is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import InputError
from ..evaluate.benchmark import ADAPTED


@dataclass(frozen=True)
class Need:
    """Options of a command and what they need."""

    options: tuple[str, ...]
    what: str
    advice: str
    met: Callable[[argparse.Namespace], bool]


def _has_index(a: argparse.Namespace) -> bool:
    return a.index is not None


def _retrieves(a: argparse.Namespace) -> bool:
    return a.index is not None or a.layers is not None


def _uses_adapter(a: argparse.Namespace) -> bool:
    return a.adapter is not None or a.decoding == "faid"


def _scores_adapter(a: argparse.Namespace) -> bool:
    return any(method in ADAPTED for method in (a.methods or "").split(","))


def _edits(a: argparse.Namespace) -> bool:
    return a.edit is not None


def _outpaints(a: argparse.Namespace) -> bool:
    return a.outpaint is not None


RETRIEVES = Need(
    (
        *("--only", "--neighborhood", "--borders", "--key-space", "--position-weight"),
        *("--weight", "--retrieval-temperature", "--neighbours", "--duplicates"),
        "--retrieval-top-p",
    ),
    "--index",
    "pass an index, such as 'pocket'",
    _has_index,
)
NEEDS = {
    "generate": (
        Need(("--mask", "--redraw", "--outpaint"), "--edit", "pass the picture to edit", _edits),
        Need(("--times",), "--outpaint", "pass the side to continue", _outpaints),
        Need(
            ("--strength", "--candidates", "--semantics"),
            "an adapter",
            "pass --adapter, or --decoding faid for a model with blenders of its own",
            _uses_adapter,
        ),
        RETRIEVES,
        Need(
            ("--candidates", "--semantics"),
            "--index",
            "pass an index, such as 'pocket'",
            _retrieves,
        ),
    ),
    "eval": (
        Need(("--adapter",), "the method faid", "add faid to --methods", _scores_adapter),
        RETRIEVES,
    ),
}
"""By command. Both DAiD and FAiD use an index."""


def check_needs(a: argparse.Namespace) -> None:
    """Refuse options that would do nothing.

    Raises:
        InputError: An option was passed without the one that it needs.
    """
    for need in NEEDS.get(a.command, ()):
        idle = [option for option in need.options if option in a.given]
        if idle and not need.met(a):
            *first, last = idle
            subject = f"{', '.join(first)} and {last} need" if first else f"{last} needs"
            omit = "them" if first else last
            raise InputError(f"{subject} {need.what}; {need.advice}, or omit {omit}")
