"""`convert`, `verify`: model files, and whether the engine computes what it should."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import shipped
from ..checkpoint import convert_checkpoint
from ..verify import verify_folder
from .shared import Command, check_writable, follow, progress_bar


def add_commands(command: Command) -> None:
    sub = command(convert)
    sub.add_argument("source", help="model folder or file")
    sub.add_argument("--out", required=True, type=Path, help="model file to write (.safetensors)")
    command(verify).add_argument("folder", type=Path, help="folder of golden numbers")


def convert(a: argparse.Namespace) -> int:
    """Write a checkpoint as one self-contained file."""
    out = check_writable(a.out, ".safetensors")
    with progress_bar("tensor") as bar:
        convert_checkpoint(shipped.resolve(a.source, shipped.MODELS), out, follow(bar))
    print(out)
    return 0


def verify(a: argparse.Namespace) -> int:
    """Check the engine against a folder of golden numbers."""
    results = []
    for check in verify_folder(a.folder):
        results.append(check)
        print(check)
    failed = sum(r.status == "FAILED" for r in results)
    ok = sum(r.status == "ok" for r in results)
    print(f"{ok} ok, {failed} failed, {len(results) - ok - failed} skipped")
    return 1 if failed or not ok else 0
