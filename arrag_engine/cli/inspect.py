"""`inspect`: say what a model or an index holds."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from .. import shipped
from ..checkpoint import open_checkpoint
from ..errors import InputError
from ..files import atomic_write
from ..index import contact_sheet, is_index, load_index, read_header
from .shared import Command, check_writable

FIRST = 5


def add_commands(command: Command) -> None:
    sub = command(inspect)
    sub.add_argument("file", help="model or index: a path or a shipped model's name")
    sub.add_argument("--sheet", type=Path, help="contact sheet of an index to write (.png)")


def inspect(a: argparse.Namespace) -> int:
    """Say what a model or index file holds."""
    path = Path(a.file)
    if a.file in shipped.shipped_names(shipped.MODELS):
        path = shipped.resolve(a.file, shipped.MODELS)
    indexed = path.is_file() and is_index(path)
    if a.sheet and not indexed:
        raise InputError(f"{path} is not an index; --sheet needs the pictures of an index")
    if a.sheet:
        check_writable(a.sheet, ".png")
    facts = _index_facts(path) if indexed else _model_facts(path)
    files = [path] if path.is_file() else [f for f in path.iterdir() if f.is_file()]
    facts["bytes"] = sum(f.stat().st_size for f in files)
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {_printable(str(value))}")
    if a.sheet:
        _write_sheet(path, a.sheet)
    return 0


def _printable(text: str) -> str:
    """The text without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _index_facts(path: Path) -> dict[str, Any]:
    index, header = load_index(path), read_header(path)
    spec, settings, sources = index.spec, index.searcher.settings, index.sources
    details = ", ".join(f"{name} {value}" for name, value in settings.items() if name != "recall")
    licences = sources.licence_counts()
    return {
        "kind": "patch index",
        "version": header["version"],
        "fingerprint": header["fingerprint"],
        "grid": str(index.grid),
        "images": len(index.tokens),
        "patches": index.size,
        "codes": len(index.codebook),
        "neighborhood": spec.neighborhood,
        "borders": spec.borders,
        "key_space": spec.space,
        "position_weight": f"{spec.position_weight:g}",
        "structure": index.searcher.kind + (f" ({details})" if details else ""),
        "recall": f"{index.recall:.3f}",
        "licences": ", ".join(f"{name or 'unknown'} ({n})" for name, n in licences.items()),
        "captions": int((sources.captions.lengths > 0).sum()),
        "first sources": ", ".join(s.name for s in sources[:FIRST]),
    }


def _model_facts(path: Path) -> dict[str, Any]:
    opened = open_checkpoint(path)
    janus = opened.janus
    shapes = opened.weights.shapes
    return {
        "kind": "model",
        "grid": str(janus.grid),
        "picture": "{}x{} pixels".format(*janus.image_size),
        **{f.name: getattr(janus.llama, f.name) for f in fields(janus.llama)},
        **{f"vq {f.name}": getattr(janus.vq, f.name) for f in fields(janus.vq)},
        "weights": sum(torch.Size(shapes[name]).numel() for name in opened.names),
    }


def _write_sheet(path: Path, out: Path) -> None:
    sheet = contact_sheet(load_index(path).sources)
    with atomic_write(out) as temporary:
        sheet.save(temporary, "PNG")
    print(out)
