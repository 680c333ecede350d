"""`inspect`: describe models, indexes and adapters."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from .. import shipped
from ..errors import InputError
from ..files import atomic_write
from ..index import (
    contact_sheet,
    file_bytes,
    is_index,
    is_manifest,
    load_index,
    open_lookup,
    read_header,
    read_manifest,
)
from ..paths import check_output, check_readable, given_name
from .shared import Command

FIRST = 5


def add_commands(command: Command) -> None:
    sub = command(inspect)
    sub.add_argument(
        "file",
        check=given_name,
        help="model, index, adapter or trace: a path or a shipped name; pocket shows the model, "
        "the index and the adapter, models/pocket, indexes/pocket and adapters/pocket one of them",
    )
    sub.add_argument(
        "--sheet", type=Path, help="contact sheet of an index to write (.png; default: none)"
    )


def inspect(a: argparse.Namespace) -> int:
    """Describe a model, an index, an adapter or a trace."""
    if a.sheet:
        check_output(a.sheet, ".png")
    files = shipped.named(a.file) or {"": check_readable(Path(a.file))}
    indexes = [path for path in files.values() if path.is_file() and is_index(path)]
    if a.sheet and not indexes:
        raise InputError(f"{a.file} is not an index; --sheet needs the pictures of an index")
    for number, (name, path) in enumerate(files.items()):
        if number:
            print()
        facts = {"name": name} if name else {}
        _print_facts(facts | _facts(path))
    if a.sheet:
        _write_sheet(indexes[0], a.sheet)
    return 0


def _facts(path: Path) -> dict[str, Any]:
    is_file = path.is_file()
    if is_file and is_manifest(path):
        return _shards_facts(path)
    facts = _index_facts(path) if is_file and is_index(path) else _other_facts(path)
    files = [path] if is_file else [f for f in path.iterdir() if f.is_file()]
    return facts | {"bytes": sum(f.stat().st_size for f in files)}


def _other_facts(path: Path) -> dict[str, Any]:
    """Of a trace, an adapter or a model."""
    from ..checkpoints.adapter import is_adapter
    from ..decode import is_trace, trace_facts

    if path.is_file() and is_trace(path):
        return {"kind": "trace"} | trace_facts(path)
    return _adapter_facts(path) if is_adapter(path) else _model_facts(path)


def _print_facts(facts: dict[str, Any]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {_printable(str(value))}")


def _printable(text: str) -> str:
    """The text without control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _index_facts(path: Path) -> dict[str, Any]:
    index, header = load_index(path), read_header(path)
    spec, searcher, sources = index.spec, index.searcher, index.sources
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
        "structure": searcher.kind + (f" ({searcher.choice})" if searcher.choice else ""),
        "recall": f"{index.recall:.3f}",
        "licences": _licences(sources.licence_counts()),
        "captions": int((sources.captions.lengths > 0).sum()),
        "first sources": ", ".join(s.name for s in sources[:FIRST]),
    }


def _shards_facts(path: Path) -> dict[str, Any]:
    """Of the manifest of an index in shards."""
    manifest, index = read_manifest(path), open_lookup(path)
    spec = manifest.keys
    return {
        "kind": "patch index in shards",
        "shards": len(manifest.shards),
        "grid": str(index.grid),
        "images": len(index.tokens),
        "patches": index.size,
        "codes": len(index.codebook),
        "neighborhood": spec.neighborhood,
        "borders": spec.borders,
        "key_space": spec.space,
        "position_weight": f"{spec.position_weight:g}",
        "structure": index.structure,
        "recall": f"{index.recall:.3f} (of the worst shard)",
        "licences": _licences(index.sources.licence_counts()),
        "first sources": ", ".join(s.name for s in index.sources[:FIRST]),
        "bytes": file_bytes(path),
    }


def _licences(counts: dict[str, int]) -> str:
    return ", ".join(f"{name or 'unknown'} ({n})" for name, n in counts.items())


def _adapter_facts(path: Path) -> dict[str, Any]:
    from ..checkpoints.adapter import open_adapter

    opened = open_adapter(path)
    info, results = opened.info, opened.info.training.get("results")
    results = results if isinstance(results, dict) else {}
    return {
        "kind": "FAiD adapter",
        "base": f"{info.base} ({info.base_fingerprint})",
        "hidden_size": info.hidden_size,
        "index": f"{info.index} ({info.index_fingerprint})" if info.index else "none",
        **{name.replace("_", " "): value for name, value in asdict(info.config).items()},
        **{name.replace("_", " "): value for name, value in results.items()},
        "weights": sum(map(math.prod, opened.weights.shapes.values())),
    }


def _model_facts(path: Path) -> dict[str, Any]:
    from ..checkpoints import open_checkpoint
    from ..models.showo.model import ShowOConfig

    opened = open_checkpoint(path)
    sizes = opened.sizes
    decoder = sizes.phi if isinstance(sizes, ShowOConfig) else sizes.llama
    shapes = opened.weights.shapes
    return {
        "kind": "model",
        "grid": str(sizes.grid),
        "picture": "{}x{} pixels".format(*sizes.image_size),
        **{f.name: getattr(decoder, f.name) for f in fields(decoder)},
        **{f"vq {f.name}": getattr(sizes.vq, f.name) for f in fields(sizes.vq)},
        "weights": sum(math.prod(shapes[name]) for name in opened.names),
    }


def _write_sheet(path: Path, out: Path) -> None:
    sheet = contact_sheet(load_index(path).sources)
    with atomic_write(out) as temporary:
        sheet.save(temporary, "PNG")
    print(out)
