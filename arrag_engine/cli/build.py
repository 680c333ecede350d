"""`build`: make a patch index from a folder of pictures."""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .. import shipped
from ..bounds import SHARD_PICTURES
from ..index import KeySpec, PatchIndex, file_bytes, load_index, read_header, read_manifest
from ..paths import check_output
from ..settings import CROPS
from .parser import number
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
    from ..build import BuildOptions, ReadSettings, Report
    from ..checkpoints import Checkpoint


def add_commands(command: Command) -> None:
    sub = command(build)
    add_model_flags(sub)
    add = sub.add_argument
    add("--images", required=True, type=Path, help="folder of pictures")
    add("--out", required=True, type=Path, help="index file to write (.safetensors)")
    add_reading_flags(sub)
    add_key_flags(sub, KeySpec())
    add_search_flags(sub)
    add(
        "--shard-pictures",
        **number(SHARD_PICTURES),
        default=0,
        help="build an index in shards of so many pictures (rounded up to whole parts of 1024) and "
        "their manifest, --out FILE.json; 0 = one file",
    )
    add(
        "--cluster",
        default="",
        metavar="ADDRESS",
        help="Ray cluster whose machines encode, each from the same paths; local = all cores and "
        "GPUs of this machine (default: this process)",
    )
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
    out = check_output(a.out, ".json" if a.shard_pictures else ".safetensors")
    spec = key_spec(a, KeySpec())
    from ..build import BuildOptions, build_index

    options = BuildOptions(spec, read_settings(a), a.structure, a.recall_target)
    check_inputs(a)
    checkpoint = load_model(a)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks about readable pictures
    if a.cluster or a.shard_pictures:
        return _build_in_parts(a, checkpoint, out, options)
    with Bars() as bars:
        built = build_index(
            checkpoint.model, a.images, out, options, fresh=a.fresh, progress=bars, say=say
        )
    print_report(built.report)
    print(summary(out, built.index, built.report))
    return 0


def _build_in_parts(
    a: argparse.Namespace, checkpoint: Checkpoint, out: Path, options: BuildOptions
) -> int:
    from ..build import build_in_parts
    from ..build.parts import run_here

    run = run_here
    if a.cluster:
        from ..index.cluster import connect, on_cluster

        connect(a.cluster)
        run = partial(on_cluster, a.cluster)
    path = shipped.resolve(a.model, shipped.MODELS)
    with Bars() as bars:
        report = build_in_parts(
            *(checkpoint.model, path, a.images, out, options, a.shard_pictures, run, a.fresh),
            progress=bars,
            say=say,
        )
    print_report(report)
    print(shard_summary(out, report) if a.shard_pictures else summary(out, load_index(out), report))
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
    search = f"{index.searcher.kind} search, recall {index.searcher.settings['recall']}"
    added = counts(len(index.tokens), index.size, report)
    return f"{out}: {added}; {out.stat().st_size} bytes, {search}"


def shard_summary(out: Path, report: Report) -> str:
    """The same of an index in shards, none of which is opened."""
    manifest = read_manifest(out)
    headers = [read_header(manifest.place(shard)) for shard in manifest.shards]
    patches = sum(int(header["patches"]) for header in headers)
    recall = min(float(header["search.recall"]) for header in headers)
    return (
        f"{out}: {counts(manifest.pictures, patches, report)}; {len(headers)} shards, "
        f"{file_bytes(out)} bytes, {manifest.structure} search, recall {recall}"
    )


def counts(crops: int, patches: int, report: Report) -> str:
    """What a build added and left out."""
    parts = [(report.pictures, "pictures"), (report.captioned, "with captions")]
    if crops != report.pictures:
        parts.append((crops, "crops"))
    parts += [(patches, "patches")]
    parts += [(len(report.duplicates), "duplicates"), (len(report.unreadable), "unreadable")]
    return ", ".join(f"{count} {what}" for count, what in parts)
