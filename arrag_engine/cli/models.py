"""`inspect`, `convert`, `verify`: look at files and check the engine."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from .. import shipped
from ..checkpoint import convert_checkpoint, open_checkpoint
from ..index import is_index, load_index, read_header
from ..verify import verify_folder
from .shared import Command, check_writable, follow, progress_bar


def add_commands(command: Command) -> None:
    command(inspect).add_argument("file", help="model or index: a path or a shipped model's name")
    sub = command(convert)
    sub.add_argument("source", help="model folder or file")
    sub.add_argument("--out", required=True, type=Path, help="model file to write (.safetensors)")
    command(verify).add_argument("folder", type=Path, help="folder of golden numbers")


def inspect(a: argparse.Namespace) -> int:
    """Say what a model or index file holds."""
    path = Path(a.file)
    if a.file in shipped.shipped_names(shipped.MODELS):
        path = shipped.resolve(a.file, shipped.MODELS)
    if path.is_file() and is_index(path):
        index = load_index(path)
        facts: dict[str, Any] = {"kind": "patch index", **dict(sorted(read_header(path).items()))}
        facts["codes"] = len(index.codebook)
        facts["licences"] = ", ".join(sorted({s.licence or "unknown" for s in index.sources}))
        facts["first sources"] = ", ".join(s.name for s in index.sources[:5])
    else:
        opened = open_checkpoint(path)
        janus = opened.janus
        facts = {
            "kind": "model",
            "grid": str(janus.grid),
            "picture": "{}x{} pixels".format(*janus.image_size),
            **{f.name: getattr(janus.llama, f.name) for f in fields(janus.llama)},
            **{f"vq {f.name}": getattr(janus.vq, f.name) for f in fields(janus.vq)},
            "weights": sum(
                torch.Size(opened.weights.shapes[name]).numel() for name in opened.names
            ),
        }
    files = [path] if path.is_file() else [f for f in path.iterdir() if f.is_file()]
    facts["bytes"] = sum(f.stat().st_size for f in files)
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    return 0


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
