"""`generate`: draw pictures for a prompt."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bounds import (
    BATCH,
    CANDIDATES,
    REDRAW,
    SEED,
    STRENGTH,
    TIMES,
    WINDOW,
    picture_seeds,
)
from ..errors import InputError
from ..files import write_text
from ..models.tokenizing import check_prompt
from ..paths import check_output, given_name
from ..settings import SEMANTICS, SIDES, SamplingChoice
from .layers import (
    KEYS,
    OPTIONS,
    add_retrieval_flags,
    check_layer_flags,
    chosen_layers,
    told_layers,
)
from .parser import number
from .progress import follow, progress_bar
from .sampling import add_sampling_flags, add_schedule_flags, chosen_sampling, chosen_schedule
from .shared import (
    Command,
    add_model_flags,
    check_adapter,
    check_inputs,
    load_model,
)

if TYPE_CHECKING:
    from PIL import Image

    from ..checkpoints import Checkpoint
    from ..decode import Drawing
    from ..faid import Faid, FaidAdapter
    from ..outpainting import Outpainting
    from ..retrieval import Retriever
    from ..session import Plan


def add_commands(command: Command) -> None:
    parser = command(generate)
    add_model_flags(parser)
    add = parser.add_argument
    add("--prompt", required=True, help="what to draw")
    add(
        "--negative",
        default="",
        metavar="TEXT",
        help="what guidance leads away from; without effect at --cfg 1 (default: nothing)",
    )
    add("--out", required=True, type=Path, help="PNG to write; a batch adds -0, -1, …")
    add_retrieval_flags(parser)
    add(
        "--decoding",
        choices=("plain", "daid", "faid"),
        help="method (default: faid with an adapter, daid with an index, otherwise plain)",
    )
    add("--seed", **number(SEED), default=0, help="picture i of a batch has seed + i")
    add("--batch", **number(BATCH), default=1, help="pictures to draw")
    add_sampling_flags(parser)
    add(
        "--adapter",
        check=given_name,
        help="FAiD adapter: path or shipped name (pocket); default: the model's own blenders, "
        "with --decoding faid",
    )
    add(
        "--strength",
        **number(STRENGTH),
        default=1.0,
        help=f"strength of the adapter: {STRENGTH}, 0 = the base",
    )
    add(
        "--candidates",
        **number(CANDIDATES),
        default=0,
        help="retrieved patches per position; 0 = as trained",
    )
    add(
        "--semantics",
        choices=SEMANTICS,
        default=SEMANTICS[0],
        help="candidates of a later blender where retrieval does not run: what the former one put "
        "out (step), or none (stepzero: as in the official training)",
    )
    add(
        "--window",
        **number(WINDOW),
        default=0,
        help="tokens per pass; the picture stays the same (0: 16 on a GPU, 1 on a CPU)",
    )
    add(
        "--exact-batch",
        action="store_true",
        help="in 16 bit, draw the pictures of a batch one after the other, each as drawn alone",
    )
    add(
        "--edit",
        type=Path,
        metavar="PICTURE",
        help="picture to edit: what --mask leaves black stays (default: none)",
    )
    add(
        "--mask",
        type=Path,
        metavar="PICTURE",
        help="white = drawn anew, of any size (default: all of the picture)",
    )
    add(
        "--redraw",
        **number(REDRAW),
        default=1.0,
        help="share of the masked tokens to draw anew, the least probable under the model first; "
        "1 = all",
    )
    add(
        "--credits",
        type=Path,
        help="file to write each source's share of the picture to, .txt or .json; the PNG has them "
        "too then; a batch adds -0, -1, … (default: none)",
    )
    add(
        "--trace",
        type=Path,
        help="trace to write, .safetensors: what drew each token and what was retrieved; a batch "
        "adds -0, -1, … (default: none)",
    )
    add_schedule_flags(parser)
    add(
        "--outpaint",
        choices=SIDES,
        help="continue the picture of --edit beyond this side by half of what the model draws; "
        "of models that draw in any order (default: no)",
    )
    add("--times", **number(TIMES), default=1, help="how often --outpaint does so")
    add(
        "--json",
        type=Path,
        help="report to write: settings, timings, retrieval facts (default: none)",
    )


def generate(a: argparse.Namespace) -> int:
    """Draw pictures for a prompt and save them as PNG."""
    sampling, decoding = _checked_settings(a)
    edited = _read_pictures(a)
    started = time.perf_counter()
    layers = chosen_layers(a) if decoding != "plain" else []
    check_adapter(a.adapter)
    checkpoint = load_model(a)
    from ..api import keep, searched_on
    from ..outpainting import outpaint
    from ..session import draw, plan

    faid = _faid(checkpoint, a) if decoding == "faid" else None
    place = searched_on(checkpoint)
    outpainting = _outpainting(checkpoint, a, edited)
    kept = keep(checkpoint, *edited) if edited and outpainting is None else None
    planned = plan(
        *(checkpoint, a.prompt, sampling, layers, faid),
        place=place,
        negative=a.negative,
        kept=kept,
        redraw=a.redraw,
        schedule=chosen_schedule(a),
    )
    for note in planned.notes:
        print(note, file=sys.stderr)
    loaded = time.perf_counter()
    size = checkpoint.model.config.grid.size
    with progress_bar("token") as bar:
        tick = follow(bar)
        seeds = picture_seeds(a.seed, a.batch)

        def show(done: int, _: object) -> None:
            tick(done, size)

        if outpainting is None:
            drawing = draw(
                *(checkpoint, planned, seeds, a.window, show),
                kept=checkpoint.passes,
                exact_batch=a.exact_batch,
            )
        else:
            drawing = outpaint(
                *(checkpoint, planned, seeds, outpainting, show),
                kept=checkpoint.passes,
                exact_batch=a.exact_batch,
            )
    for note in drawing.notes:
        print(note, file=sys.stderr)
    drawn = time.perf_counter()
    settings = _settings(a, checkpoint, planned, decoding)
    files = _save_pictures(checkpoint, drawing, a.out, settings, a.credits)
    if a.trace:
        _save_traces(drawing, a.trace)
    if a.json:
        timings = {
            "load_s": round(loaded - started, 3),
            "draw_s": round(drawn - loaded, 3),
            "decode_s": round(time.perf_counter() - drawn, 3),
        }
        _write_report(a.json, settings, timings, files, drawing, planned)
    return 0


def _settings(
    a: argparse.Namespace, checkpoint: Checkpoint, planned: Plan, decoding: str
) -> dict[str, Any]:
    """What a picture was drawn with, as it is written into its file."""
    from ..session import device_window

    recipe = planned.recipe
    settings = {
        "model": a.model,
        "prompt": a.prompt,
        "decoding": decoding,
        "seed": a.seed,
        "window": a.window or device_window(checkpoint.model.device),
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
        **asdict(recipe.sampling),
    }
    if not checkpoint.model.order.raster:
        settings |= {f"schedule_{k}": v for k, v in asdict(recipe.schedule).items()}
    if a.negative.strip():
        settings["negative"] = a.negative
    if recipe.faid is not None:
        settings |= {name: getattr(a, name) for name in ("adapter", "strength", "semantics")}
        settings["candidates"] = recipe.faid.received
    if recipe.kept is not None:
        settings |= {"edit": str(a.edit), "redraw": a.redraw}
        settings["mask"] = None if a.mask is None else str(a.mask)
    if a.outpaint is not None:
        settings |= {"edit": str(a.edit), "outpaint": a.outpaint, "times": a.times}
    told = [facts for facts, _ in told_layers(a)] if recipe.layers else []
    used = [told[one.number] | _layer_settings(one) for one in recipe.layers]
    if a.layers is not None and used:
        return settings | {"layers": used}
    for one in used:
        settings |= {name: v for name, v in one.items() if name not in (*OPTIONS, *KEYS)}
    return settings


def _layer_settings(layer: Retriever) -> dict[str, Any]:
    keys = {f"keys_{k}": v for k, v in asdict(layer.source.spec).items()}
    return keys | {f"retrieval_{k}": v for k, v in asdict(layer.options).items()}


def _checked_settings(a: argparse.Namespace) -> tuple[SamplingChoice, str]:
    """(sampling, decoding) of `generate`, refused before anything is loaded."""
    decoding = a.decoding or ("faid" if a.adapter else "daid" if a.index or a.layers else "plain")
    if decoding == "daid" and a.index is None and a.layers is None:
        raise InputError("--decoding daid needs --index; pass an index, such as 'pocket'")
    check_layer_flags(a)
    if a.adapter is not None and decoding != "faid":
        raise InputError(
            f"--decoding {decoding} does not use --adapter; choose faid, or omit --adapter"
        )
    if a.outpaint is not None:
        _check_outpaint(a)
    check_output(a.out, ".png")
    if a.json:
        check_output(a.json, ".json")
    if a.trace:
        check_output(a.trace, ".safetensors")
    if a.credits:
        check_output(a.credits, ".txt" if a.credits.suffix.lower() == ".txt" else ".json")
    check_prompt(a.prompt)
    if a.negative.strip():
        check_prompt(a.negative, "negative prompt")
    check_inputs(a)
    return chosen_sampling(a), decoding


def _check_outpaint(a: argparse.Namespace) -> None:
    """Refuse what an outpainted picture does not have.

    Raises:
        InputError: Something is said of tokens inside it, or of its trace.
    """
    others = [f"--{name}" for name in ("mask", "redraw") if f"--{name}" in a.given]
    others += [f"--{name}" for name in ("trace", "credits") if getattr(a, name)]
    if others:
        raise InputError(
            f"--outpaint keeps all tokens of the picture and writes no trace; omit {others[0]}, or "
            "--outpaint"
        )


def _outpainting(
    checkpoint: Checkpoint, a: argparse.Namespace, edited: list[Image.Image]
) -> Outpainting | None:
    """The picture to continue, if that is asked for.

    Raises:
        InputError: The model cannot do it.
    """
    if a.outpaint is None:
        return None
    from ..api import encode
    from ..outpainting import Outpainting

    outpainting = Outpainting(encode(checkpoint, edited[0])[None], a.outpaint, a.times)
    outpainting.check_fits(checkpoint.model, a.batch)
    return outpainting


def _read_pictures(a: argparse.Namespace) -> list[Image.Image]:
    """The picture to edit and its mask, as far as they are passed.

    Raises:
        InputError: One of them cannot be read.
    """
    from ..images import open_picture

    pictures = []
    for option, path in (("--edit", a.edit), ("--mask", a.mask)):
        if path is None:
            continue
        try:
            pictures.append(open_picture(path))
        except InputError as error:
            raise InputError(f"{option} {path}: {error}") from error
    return pictures


def _faid(checkpoint: Checkpoint, a: argparse.Namespace) -> Faid:
    from ..faid import Faid

    adapter = load_adapter_flag(checkpoint, a.adapter)
    return Faid(adapter, a.strength, a.candidates, a.semantics)


def load_adapter_flag(checkpoint: Checkpoint, name: str | None) -> FaidAdapter:
    """The adapter that --adapter names, else the one that came with the model, ready to use."""
    from ..api import load_adapter, settle

    if name is not None:
        with progress_bar("part") as bar:
            return load_adapter(name, checkpoint, follow(bar))
    if checkpoint.faid is None:
        raise InputError(
            f"{checkpoint.name} has no FAiD blenders of its own; pass an --adapter for it"
        )
    settle(checkpoint.faid, checkpoint.model.device)
    return checkpoint.faid


def _save_pictures(
    checkpoint: Checkpoint,
    drawing: Drawing,
    out: Path,
    settings: dict[str, Any],
    credits: Path | None,
) -> list[Path]:
    """Decode one picture after the other and save it with its settings and credits inside."""
    from ..api import decode_picture
    from ..images import save_png

    batch = len(drawing.tokens)
    files = _numbered(out, batch)
    texts = [{} for _ in files] if credits is None else _save_credits(drawing, credits)
    for i, (file, codes) in enumerate(zip(files, drawing.tokens, strict=True)):
        facts = json.dumps(settings | {"seed": settings["seed"] + i}, ensure_ascii=False)
        save_png(decode_picture(checkpoint, codes), file, {"arrag": facts, **texts[i]})
    print(*files, sep="\n")  # when all are saved: the reader of a pipe may stop
    return files


def _save_traces(drawing: Drawing, out: Path) -> None:
    from ..decode import save_trace

    for path, trace in zip(_numbered(out, len(drawing.traces)), drawing.traces, strict=True):
        save_trace(trace, path)


def _save_credits(drawing: Drawing, out: Path) -> list[dict[str, str]]:
    """Write the credits of each picture; returns them as text fields of the pictures."""
    from ..attribution import CHUNK, drawing_credits

    owed = drawing_credits(drawing)
    for path, credits in zip(_numbered(out, len(owed)), owed, strict=True):
        text = credits.as_text() if path.suffix.lower() == ".txt" else credits.as_json()
        write_text(path, f"{text}\n")
    return [{CHUNK: credits.as_json()} for credits in owed]


def _numbered(path: Path, batch: int) -> list[Path]:
    """The files of a batch."""
    stems = [path.stem] if batch == 1 else [f"{path.stem}-{i}" for i in range(batch)]
    return [path.with_stem(stem) for stem in stems]


def _write_report(
    path: Path,
    settings: dict[str, Any],
    timings: dict[str, float],
    files: list[Path],
    drawing: Drawing,
    planned: Plan,
) -> None:
    report = {
        "settings": settings,
        "unknown_words": planned.prompt.unknown,
        "notes": planned.notes,
        "timings": timings,
        "passes": drawing.passes,
        "images": [
            {"file": str(file), "tokens": tokens.flatten().tolist()}
            for file, tokens in zip(files, drawing.tokens, strict=True)
        ],
    }
    traces = drawing.traces if settings.get("outpaint") is None else []
    for image, trace in zip(report["images"], traces, strict=False):
        image["positions"] = [trace.position_facts(i) for i in range(trace.grid.size)]
    write_text(path, json.dumps(report, ensure_ascii=False, indent=1))
