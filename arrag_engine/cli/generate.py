"""`generate`: draw pictures for a prompt."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import shipped
from ..errors import InputError
from ..files import atomic_write
from ..index import load_index
from ..settings import DUPLICATES, MAX_STRENGTH, SEMANTICS, RetrievalOptions, Sampling
from .progress import follow, progress_bar
from .shared import (
    Command,
    add_key_flags,
    add_model_flags,
    check_writable,
    key_spec,
    load_model,
)

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..daid import Retrieval
    from ..decode import Drawing
    from ..faid import Faid, FaidAdapter
    from ..janus import JanusPro
    from ..prompt import Prompt


def add_commands(command: Command) -> None:
    parser = command(generate)
    add_model_flags(parser)
    add = parser.add_argument
    sampling, options = Sampling(), RetrievalOptions()
    add("--prompt", required=True, help="what to draw")
    add("--out", required=True, type=Path, help="PNG to write; a batch adds -0, -1, …")
    add(
        "--index",
        help="index to look patches up in: path or shipped name, such as pocket (default: none)",
    )
    add(
        "--only",
        default="",
        metavar="PATTERN",
        help="use only pictures of the index whose caption or source matches (default: all)",
    )
    add_key_flags(parser)
    add(
        "--decoding",
        choices=("plain", "daid", "faid"),
        help="method (default: faid with an adapter, daid with an index, otherwise plain)",
    )
    add("--seed", type=int, default=0, help="picture i of a batch has seed + i")
    add("--batch", type=int, default=1, help="pictures to draw")
    add("--cfg", type=float, help=f"guidance (default: what suits the model, else {sampling.cfg})")
    add(
        "--temperature",
        type=float,
        help="0 = most probable token (default: what suits the model, else "
        f"{sampling.temperature})",
    )
    add("--top-k", type=int, default=sampling.top_k, help="most probable tokens to keep; 0 = all")
    add(
        "--top-p",
        type=float,
        default=sampling.top_p,
        help="keep the most probable tokens up to this mass",
    )
    add(
        "--weight",
        type=weight_of,
        help=f"retrieval weight λ, or auto: as calibrated, with the settings that it was "
        f"calibrated for (default: {options.weight}; with faid 0)",
    )
    add(
        "--retrieval-temperature",
        type=float,
        help=f"τ: a lower one prefers nearer patches (default: {options.temperature})",
    )
    add("--neighbours", type=int, help=f"K patches per query (default: {options.neighbours})")
    add(
        "--duplicates",
        choices=DUPLICATES,
        help="neighbours with one code: the first counts, or the sum "
        f"(default: {options.duplicates})",
    )
    add(
        "--retrieval-top-p",
        type=float,
        help=f"top-p of the proposals (default: {options.top_p:g})",
    )
    add(
        "--adapter",
        help="FAiD adapter: path or shipped name (pocket); default: the model's own blenders, "
        "with --decoding faid",
    )
    add(
        "--strength",
        type=float,
        default=1.0,
        help=f"strength of the adapter: 0 to {MAX_STRENGTH:g}, 0 = the base",
    )
    add("--candidates", type=int, default=0, help="retrieved patches per position; 0 = as trained")
    add(
        "--semantics",
        choices=SEMANTICS,
        default=SEMANTICS[0],
        help="candidates of a later blender where retrieval does not run: what the former one put "
        "out (step), or none (stepzero: as in the official training)",
    )
    add("--window", type=int, default=1, help="tokens per pass; the picture stays the same")
    add(
        "--json",
        type=Path,
        help="report to write: settings, timings, retrieval facts (default: none)",
    )


def weight_of(text: str) -> float | Literal["auto"]:
    return "auto" if text == "auto" else float(text)


def generate(a: argparse.Namespace) -> int:
    """Draw pictures for a prompt and save them as PNG."""
    sampling, told, decoding = _checked_settings(a)
    started = time.perf_counter()
    checkpoint = load_model(a)
    from ..decode import draw_pictures

    if None in (a.cfg, a.temperature):
        sampling = _fill(sampling, a, checkpoint.sampling)
    faid = _faid(checkpoint, a) if decoding == "faid" else None
    retrieval = None
    prompt = checkpoint.prompt_encoder.encode(a.prompt)
    if a.index is not None and decoding != "plain":
        retrieval = _retrieval(checkpoint, a, told, prompt)
    if prompt.unknown:
        print(f"warning: the model does not know: {', '.join(prompt.unknown)}", file=sys.stderr)
    loaded = time.perf_counter()
    size = checkpoint.model.config.grid.size
    with progress_bar("token") as bar:
        tick = follow(bar)
        drawing = draw_pictures(
            checkpoint.model,
            prompt.ids,
            prompt.pad_id,
            sampling,
            [a.seed + i for i in range(a.batch)],
            retrieval,
            a.window,
            lambda done, _: tick(done, size),
            faid=faid,
        )
    drawn = time.perf_counter()
    settings = {
        "model": a.model,
        "prompt": a.prompt,
        "decoding": decoding,
        "seed": a.seed,
        "window": a.window,
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
        **asdict(sampling),
    }
    if faid is not None:
        settings |= {name: getattr(a, name) for name in ("adapter", "strength", "semantics")}
        settings["candidates"] = faid.heard
    if retrieval is not None:
        settings |= {"index": a.index, "only": a.only}
        settings |= {f"keys_{k}": v for k, v in asdict(retrieval.retriever.index.spec).items()}
        settings |= {f"retrieval_{k}": v for k, v in asdict(retrieval.options).items()}
    files = _save_pictures(checkpoint.model, drawing, a.out, settings)
    if a.json:
        timings = {
            "load_s": round(loaded - started, 3),
            "draw_s": round(drawn - loaded, 3),
            "decode_s": round(time.perf_counter() - drawn, 3),
        }
        _write_report(a.json, settings, timings, files, drawing, prompt.unknown)
    return 0


def _checked_settings(a: argparse.Namespace) -> tuple[Sampling, dict[str, Any], str]:
    """(sampling, what is told of retrieval, decoding) of `generate`, refused before anything is
    loaded."""
    decoding = a.decoding or ("faid" if a.adapter else "daid" if a.index else "plain")
    if decoding == "daid" and a.index is None:
        raise InputError("--decoding daid needs --index; pass an index, such as 'pocket'")
    if a.adapter is not None and decoding != "faid":
        raise InputError(
            f"--decoding {decoding} does not use --adapter; choose faid, or omit --adapter"
        )
    if a.weight is None:
        a.weight = 0.0 if decoding == "faid" else RetrievalOptions().weight
    if not 1 <= a.batch <= 64:
        raise InputError(f"--batch is {a.batch}; choose 1 to 64")
    check_writable(a.out, ".png")
    if a.json:
        check_writable(a.json, ".json")
    told = {
        "weight": a.weight,
        "temperature": a.retrieval_temperature,
        "neighbours": a.neighbours,
        "duplicates": a.duplicates,
        "top_p": a.retrieval_top_p,
    }
    told = {name: value for name, value in told.items() if value is not None}
    RetrievalOptions(**told)
    sampling = _fill(Sampling(top_k=a.top_k, top_p=a.top_p), a, Sampling())
    return sampling, told, decoding


def _fill(sampling: Sampling, a: argparse.Namespace, suits: Sampling) -> Sampling:
    """Guidance and temperature as told, else those that suit the model."""
    return replace(
        sampling,
        cfg=suits.cfg if a.cfg is None else a.cfg,
        temperature=suits.temperature if a.temperature is None else a.temperature,
    )


def _faid(checkpoint: Checkpoint, a: argparse.Namespace) -> Faid:
    from ..faid import Faid

    adapter = load_adapter_flag(checkpoint, a.adapter)
    return Faid(adapter, a.strength, a.candidates, a.semantics)


def load_adapter_flag(checkpoint: Checkpoint, name: str | None) -> FaidAdapter:
    """The adapter that --adapter names, else the one that came with the model, ready to use."""
    from ..adapter import load_adapter
    from ..ops import pack_linears

    adapter = checkpoint.faid
    if name is not None:
        path = shipped.resolve(name, shipped.ADAPTERS)
        with progress_bar("part") as bar:
            adapter = load_adapter(path, checkpoint, checkpoint.model.dtype, progress=follow(bar))
    if adapter is None:
        raise InputError(
            f"{checkpoint.name} has no FAiD blenders of its own; pass an --adapter for it"
        )
    device = checkpoint.model.device
    adapter.to(device)
    if device.type == "cpu":
        pack_linears(adapter)
    return adapter


def _retrieval(
    checkpoint: Checkpoint, a: argparse.Namespace, told: dict[str, Any], prompt: Prompt
) -> Retrieval:
    from ..daid import Retrieval, calibrated_options
    from ..retriever import Retriever

    model = checkpoint.model
    codebook = model.vq.codebook(model.device)
    patches = load_index(shipped.resolve(a.index, shipped.INDEXES))
    patches = patches.rekeyed(key_spec(a, patches.spec))
    if a.only:
        patches = patches.matching(a.only)
    suits = calibrated_options(patches) if told["weight"] == "auto" else RetrievalOptions()
    retriever = Retriever(patches, model.config.grid, codebook)
    options = replace(suits, **told)
    return Retrieval(retriever, options, unknown_words=bool(prompt.unknown))


def _save_pictures(
    model: JanusPro, drawing: Drawing, out: Path, settings: dict[str, Any]
) -> list[Path]:
    """Decode one picture after the other and save it with its settings inside."""
    import torch
    from PIL import Image

    from ..images import save_png
    from ..vq import to_uint8

    batch = len(drawing.tokens)
    files = [out] if batch == 1 else [_numbered(out, i) for i in range(batch)]
    for i, (file, codes) in enumerate(zip(files, drawing.tokens, strict=True)):
        with torch.inference_mode():
            pixels = to_uint8(model.vq.decode(codes[None].to(model.device)))[0].cpu().numpy()
        facts = json.dumps(settings | {"seed": settings["seed"] + i}, ensure_ascii=False)
        save_png(Image.fromarray(pixels), file, {"arrag": facts})
        print(file)
    return files


def _numbered(path: Path, number: int) -> Path:
    return path.with_stem(f"{path.stem}-{number}")


def _write_report(
    path: Path,
    settings: dict[str, Any],
    timings: dict[str, float],
    files: list[Path],
    drawing: Drawing,
    unknown: list[str],
) -> None:
    report = {
        "settings": settings,
        "unknown_words": unknown,
        "timings": timings,
        "passes": drawing.passes,
        "images": [
            {"file": str(file), "tokens": tokens.flatten().tolist()}
            for file, tokens in zip(files, drawing.tokens, strict=True)
        ],
    }
    for image, trace in zip(report["images"], drawing.traces, strict=False):
        image["positions"] = [trace.position_facts(i) for i in range(trace.grid.size)]
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
