"""`build`: make a patch index from a folder of pictures."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ..index import KeySpec, PatchIndex
from ..paths import check_output
from ..settings import CROPS
from .progress import Bars, say
from .shared import (
    Command,
    add_key_flags,
    add_model_flags,
    add_search_flags,
    check_inputs,
    key_spec,
    load_model,
)

if TYPE_CHECKING:
    from ..build import ReadSettings, Report


def add_commands(command: Command) -> None:
    sub = command(build)
    add_model_flags(sub)
    add = sub.add_argument
    add("--images", required=True, type=Path, help="folder of pictures")
    add("--out", required=True, type=Path, help="index file to write (.safetensors)")
    add_reading_flags(sub)
    add_key_flags(sub, KeySpec())
    add_search_flags(sub)
    add("--fresh", action="store_true", help="ignore the finished part of an interrupted build")
    sub.set_defaults(resumes=True)


def add_reading_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--licence",
        default="",
        help="licence of pictures whose metadata has none (default: unknown)",
    )
    add("--source", default="", help="source of pictures whose metadata has none (default: none)")
    add("--crops", choices=CROPS, default="center", help="the middle only, or all of the picture")


def read_settings(a: argparse.Namespace) -> ReadSettings:
    """What `add_reading_flags` were set to."""
    from ..build import ReadSettings

    return ReadSettings(a.licence, a.source, a.crops)


def build(a: argparse.Namespace) -> int:
    """Build an index from a folder of pictures; a stopped build resumes where it was."""
    out = check_output(a.out, ".safetensors")
    spec = key_spec(a, KeySpec())
    from ..build import BuildOptions, build_index

    options = BuildOptions(spec, read_settings(a), a.structure, a.recall_target)
    check_inputs(a)
    checkpoint = load_model(a)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks about readable pictures
    with Bars() as bars:
        built = build_index(
            checkpoint.model, a.images, out, options, fresh=a.fresh, progress=bars, say=say
        )
    print_report(built.report)
    print(summary(out, built.index, built.report))
    return 0


def print_report(report: Report) -> None:
    """Print what was left out, and why."""
    for name, first in report.duplicates:
        say(f"skipped {name}: the same file as {first}")
    for name, reason in report.unreadable:
        say(f"skipped {name}: {reason}")
    for note in report.notes:
        say(f"note: {note}")


def summary(out: Path, index: PatchIndex, report: Report) -> str:
    """The summary of a build, one line."""
    counts = [(report.pictures, "pictures"), (report.captioned, "with captions")]
    if len(index.tokens) != report.pictures:
        counts.append((len(index.tokens), "crops"))
    counts += [(index.size, "patches")]
    counts += [(len(report.duplicates), "duplicates"), (len(report.unreadable), "unreadable")]
    summary = ", ".join(f"{count} {what}" for count, what in counts)
    search = f"{index.searcher.kind} search, recall {index.searcher.settings['recall']}"
    return f"{out}: {summary}; {out.stat().st_size} bytes, {search}"
