"""`python -m arrag_engine`: draw, build an index, look into files, convert, verify.

Exit codes: 0 done, 2 the input is at fault (one sentence on stderr), 1 anything else.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from . import shipped
from .build import build_index
from .checkpoint import (
    DTYPE_CHOICES,
    Checkpoint,
    convert_checkpoint,
    load_checkpoint,
    open_checkpoint,
    resolve_dtype,
)
from .daid import Retrieval, RetrievalOptions
from .decode import Drawing, draw_pictures
from .errors import InputError
from .files import atomic_write
from .grid import BORDERS, NEIGHBORHOODS
from .images import save_png
from .index import KEY_SPACES, KeySpec, is_index, load_index, read_header, save_index
from .janus import JanusPro
from .retriever import Retriever
from .sampling import Sampling
from .verify import verify_folder
from .vq import to_uint8


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # some consoles cannot print λ
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 1


def generate(a: argparse.Namespace) -> int:
    """Draw pictures for a prompt and save them as PNG."""
    sampling, options, decoding = _checked_settings(a)
    started = time.perf_counter()
    checkpoint = _load_model(a)
    retrieval = _retrieval(checkpoint, a.index, options) if decoding == "daid" else None
    prompt = checkpoint.prompt_encoder.encode(a.prompt)
    if prompt.unknown:
        print(f"warning: the model does not know: {', '.join(prompt.unknown)}", file=sys.stderr)
    loaded = time.perf_counter()
    size = checkpoint.model.config.grid.size
    with _bar("token") as bar:
        follow = _follow(bar)
        drawing = draw_pictures(
            checkpoint.model,
            prompt.ids,
            prompt.pad_id,
            sampling,
            [a.seed + i for i in range(a.batch)],
            retrieval,
            a.window,
            lambda done, _: follow(done, size),
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
    if retrieval is not None:
        settings |= {"index": a.index, **{f"retrieval_{k}": v for k, v in asdict(options).items()}}
    files = _save_pictures(checkpoint.model, drawing, a.out, settings)
    if a.json:
        timings = {
            "load_s": round(loaded - started, 3),
            "draw_s": round(drawn - loaded, 3),
            "decode_s": round(time.perf_counter() - drawn, 3),
        }
        _write_report(a.json, settings, timings, files, drawing, prompt.unknown)
    return 0


def _checked_settings(a: argparse.Namespace) -> tuple[Sampling, RetrievalOptions, str]:
    """(sampling, retrieval options, decoding) of `generate`, refused before anything is loaded."""
    if a.decoding == "daid" and a.index is None:
        raise InputError("--decoding daid needs --index; name an index, such as 'pocket'")
    if not 1 <= a.batch <= 64:
        raise InputError(f"--batch is {a.batch}; choose 1 to 64")
    _writable(a.out, ".png")
    if a.json:
        _writable(a.json, ".json")
    options = RetrievalOptions(
        a.weight, a.retrieval_temperature, a.neighbours, a.duplicates, a.retrieval_top_p
    )
    sampling = Sampling(a.cfg, a.temperature, a.top_k, a.top_p)
    return sampling, options, a.decoding or ("daid" if a.index else "plain")


@torch.inference_mode()
def _save_pictures(
    model: JanusPro, drawing: Drawing, out: Path, settings: dict[str, Any]
) -> list[Path]:
    """Decode one picture after the other and save it with its settings inside."""
    batch = len(drawing.tokens)
    files = [out] if batch == 1 else [_numbered(out, i) for i in range(batch)]
    for i, (file, codes) in enumerate(zip(files, drawing.tokens, strict=True)):
        pixels = to_uint8(model.vq.decode(codes[None].to(model.device)))[0].cpu().numpy()
        facts = json.dumps(settings | {"seed": settings["seed"] + i}, ensure_ascii=False)
        save_png(Image.fromarray(pixels), file, {"arrag": facts})
        print(file)
    return files


def build(a: argparse.Namespace) -> int:
    """Build an index from a folder of pictures."""
    out = _writable(a.out, ".safetensors")
    spec = KeySpec(a.neighborhood, a.borders, a.key_space)
    checkpoint = _load_model(a)
    with _bar("picture") as bar:
        built = build_index(checkpoint.model, a.images, spec, a.licence, _follow(bar))
    save_index(built.index, out)
    for path, why in built.skipped:
        print(f"skipped {path}: {why}", file=sys.stderr)
    print(f"{out}: {len(built.index.tokens)} pictures, {built.index.size} patches")
    return 0


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
    out = _writable(a.out, ".safetensors")
    with _bar("tensor") as bar:
        convert_checkpoint(shipped.resolve(a.source, shipped.MODELS), out, _follow(bar))
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


def _load_model(a: argparse.Namespace) -> Checkpoint:
    device = _device(a.device)
    path = shipped.resolve(a.model, shipped.MODELS)
    with _bar("tensor") as bar:
        checkpoint = load_checkpoint(path, resolve_dtype(a.dtype, device), progress=_follow(bar))
    checkpoint.model.to(device)
    return checkpoint


def _bar(unit: str) -> tqdm:
    """A progress bar on stderr; it stays away where nobody watches, and for what takes no time."""
    return tqdm(unit=unit, disable=None, delay=1, leave=False)


def _follow(bar: tqdm) -> Callable[[int, int], None]:
    def follow(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return follow


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} is not usable here ({reason}); try cpu") from error
    return device


def _retrieval(checkpoint: Checkpoint, index: str, options: RetrievalOptions) -> Retrieval:
    model = checkpoint.model
    codebook = model.vq.codebook(model.device)
    patches = load_index(shipped.resolve(index, shipped.INDEXES))
    return Retrieval(Retriever(patches, model.config.grid, codebook), options)


def _writable(out: Path, suffix: str) -> Path:
    """Find out before the work, not after it, that the result cannot be saved."""
    if out.suffix.lower() != suffix:
        raise InputError(f"{out} must end in {suffix}")
    if out.is_dir():
        raise InputError(f"{out} is a folder; name a file")
    if not out.parent.is_dir():
        raise InputError(f"there is no folder {out.parent} to write {out.name} to; create it first")
    return out


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m arrag_engine", description="Retrieval-augmented image generation (AR-RAG)."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        sub.set_defaults(run=run)
        return sub

    _generate_flags(command(generate))
    sub = command(build)
    _model_flags(sub)
    sub.add_argument("--images", required=True, type=Path, help="folder of PNG, JPEG, WebP")
    sub.add_argument("--out", required=True, type=Path, help="index file to write (.safetensors)")
    sub.add_argument("--licence", default="", help="noted for every picture")
    sub.add_argument("--neighborhood", choices=NEIGHBORHOODS, default="causal-4")
    sub.add_argument("--borders", choices=BORDERS, default="skip")
    sub.add_argument("--key-space", choices=KEY_SPACES, default="encoder")
    command(inspect).add_argument("file", help="model or index: a path or a shipped model's name")
    sub = command(convert)
    sub.add_argument("source", help="model folder or file")
    sub.add_argument("--out", required=True, type=Path, help="model file to write (.safetensors)")
    command(verify).add_argument("folder", type=Path, help="folder of golden numbers")
    return parser


def _model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="pocket", help="path or shipped name (pocket)")
    parser.add_argument("--dtype", choices=DTYPE_CHOICES, default="auto", help="decoder's dtype")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")


def _generate_flags(parser: argparse.ArgumentParser) -> None:
    _model_flags(parser)
    add = parser.add_argument
    sampling, options = Sampling(), RetrievalOptions()
    add("--prompt", required=True, help="what to draw")
    add("--out", required=True, type=Path, help="PNG to write; a batch adds -0, -1, …")
    add("--index", help="path or shipped name (pocket)")
    add("--decoding", choices=("plain", "daid"), help="daid when there is an index")
    add("--seed", type=int, default=0, help="picture i of a batch has seed + i")
    add("--batch", type=int, default=1, help="pictures to draw")
    add("--cfg", type=float, default=sampling.cfg, help="guidance weight")
    add("--temperature", type=float, default=sampling.temperature, help="0 = most probable token")
    add("--top-k", type=int, default=sampling.top_k, help="0 = all tokens")
    add("--top-p", type=float, default=sampling.top_p)
    add("--weight", type=float, default=options.weight, help="retrieval weight λ")
    add("--retrieval-temperature", type=float, default=options.temperature, help="τ")
    add("--neighbours", type=int, default=options.neighbours, help="K patches per query")
    add("--duplicates", choices=("first", "sum"), default=options.duplicates)
    add("--retrieval-top-p", type=float, default=options.top_p)
    add("--window", type=int, default=1, help="tokens per pass; the picture stays the same")
    add("--json", type=Path, help="also write settings, timings and retrieval facts there")
