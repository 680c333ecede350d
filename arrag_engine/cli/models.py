"""`convert`, `verify`: model files, and checks of the engine against golden numbers."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import shipped
from ..errors import InputError
from ..paths import check_output, is_folder, look_at
from .progress import follow, progress_bar
from .shared import Command

FIXTURES = (
    "A folder of golden numbers (a fixture) is what the reference programs of AR-RAG and Janus-Pro "
    "computed with one model and one database. No such folder comes with this program: run "
    "the reference programs and save their results. It holds "
    "settings.json, the model, and a .safetensors file for each of the groups vq, vanilla, db, "
    "daid and faid; a group without its file is skipped. docs/commands.md describes the files."
)


def add_commands(command: Command) -> None:
    sub = command(convert)
    sub.add_argument("source", help="model to convert: folder, file or shipped name (pocket)")
    sub.add_argument("--out", required=True, type=Path, help="model file to write (.safetensors)")
    sub = command(verify)
    sub.epilog = FIXTURES
    sub.add_argument("folder", type=Path, help="folder of golden numbers: see below")


def convert(a: argparse.Namespace) -> int:
    """Write a checkpoint as one self-contained file."""
    out = check_output(a.out, ".safetensors")
    from ..checkpoints import convert_checkpoint

    with progress_bar("tensor") as bar:
        convert_checkpoint(shipped.resolve(a.source, shipped.MODELS), out, follow(bar))
    print(out)
    return 0


def verify(a: argparse.Namespace) -> int:
    """Check the engine against golden numbers of the reference programs."""
    if look_at(a.folder / "settings.json") is None:
        fault = "has no settings.json" if is_folder(a.folder) else "is no folder"
        raise InputError(
            f"{a.folder} {fault}; choose a folder of golden numbers, which the reference programs "
            "computed: 'verify --help' describes its files and where it comes from"
        )
    from ..verify import verify_folder

    results = []
    for check in verify_folder(a.folder):
        results.append(check)
        print(check)
    failed = sum(r.status == "FAILED" for r in results)
    ok = sum(r.status == "ok" for r in results)
    print(f"{ok} ok, {failed} failed, {len(results) - ok - failed} skipped")
    return 1 if failed or not ok else 0
