"""`eval`: score a model with and without retrieval. `calibrate`: when to trust an index."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file

from .. import shipped
from ..bench.prompts import KINDS, read_prompts
from ..bench.scenes import BenchScene, read_scenes
from ..bench.settings import ADAPTED, EVERY_KIND, METHODS
from ..bounds import (
    CEILING,
    FIRST_SEED,
    HARM_SHARE,
    LIMIT,
    NEIGHBOURS,
    PICTURES_EACH,
    RETRIEVAL_TEMPERATURE,
    RETRIEVAL_TOP_P,
)
from ..errors import InputError
from ..files import atomic_write
from ..index import load_index, save_index
from ..locks import locked
from ..paths import check_file, check_folder, check_output, check_work_folder, given_name
from ..settings import DUPLICATES, HARM, RetrievalOptions
from .build import print_report
from .generate import load_adapter_flag
from .parser import number
from .progress import follow, progress_bar
from .shared import Command, add_model_flags, check_adapter, check_inputs, load_model

if TYPE_CHECKING:
    from ..bench.run import Bench, Pictures
    from ..bench.tasks import Task
    from ..calibrate import Observations
    from ..checkpoints import Checkpoint
    from ..retrieval import Retriever

SUITES = ("pocket",)


def add_commands(command: Command) -> None:
    parser = command(eval_)
    parser.add_argument("suite", choices=SUITES, help="which benchmark")
    add_model_flags(parser)
    add = parser.add_argument
    add(
        "--index",
        default="pocket",
        check=given_name,
        help="index to look patches up in: path or shipped name",
    )
    add(
        "--adapter",
        check=given_name,
        help="for the method faid: path or shipped name (default: the model's own blenders)",
    )
    add("--methods", default="plain,daid,control", help=f"some of {','.join(METHODS)}")
    add("--kinds", default=",".join(EVERY_KIND), help="kinds of prompts to draw")
    add("--seeds", **number(PICTURES_EACH), default=4, help="pictures of each prompt")
    add(
        "--first-seed",
        **number(FIRST_SEED),
        default=0,
        help="seed of the first picture of a prompt; settings were chosen on 8 and 9",
    )
    add("--limit", **number(LIMIT), help="prompts of a kind, and scenes of a split (default: all)")
    add(
        "--scorer",
        type=Path,
        default=shipped.BENCH / "scorer.safetensors",
        help="file of the detector that judges the pictures (default: the shipped one)",
    )
    add(
        "--out",
        type=Path,
        help="folder for contact sheets, scores.json and table.txt (default: none is written)",
    )
    parser = command(calibrate)
    add_model_flags(parser)
    add, options = parser.add_argument, RetrievalOptions()
    add(
        "--index",
        required=True,
        check=given_name,
        help="index to calibrate: path or shipped name (pocket)",
    )
    add("--images", required=True, type=Path, help="folder of pictures that are not in the index")
    add(
        "--known",
        type=Path,
        help="folder of captioned pictures like those that the model draws well alone, which must "
        "not suffer (default: the model draws some)",
    )
    add(
        "--harm",
        **number(HARM_SHARE),
        default=HARM,
        help="share of the known pictures' tokens to spoil at most",
    )
    add("--out", required=True, type=Path, help="index file to write (.safetensors)")
    add(
        "--retrieval-temperature",
        **number(RETRIEVAL_TEMPERATURE),
        default=options.temperature,
        help="τ: a lower one prefers nearer patches",
    )
    add(
        "--neighbours",
        **number(NEIGHBOURS),
        default=options.neighbours,
        help="K patches per query",
    )
    add(
        "--duplicates",
        choices=DUPLICATES,
        default=options.duplicates,
        help="neighbours with one code: the first counts, or the sum",
    )
    add(
        "--retrieval-top-p",
        **number(RETRIEVAL_TOP_P),
        default=options.top_p,
        help="top-p of the proposals",
    )
    add("--ceiling", **number(CEILING), default=1.0, help="largest weight λ, more than 0 to 1")
    add("--limit", **number(LIMIT), help="use so many pictures, evenly taken (default: all)")


def eval_(a: argparse.Namespace) -> int:
    """Draw a benchmark's prompts with several methods and score the pictures."""
    methods, kinds = _chosen(a.methods, METHODS, "methods"), _chosen(a.kinds, EVERY_KIND, "kinds")
    check_file(a.scorer)
    check_inputs(a)
    if a.out is not None:
        check_work_folder(a.out)
    index = load_index(shipped.resolve(a.index, shipped.INDEXES))
    check_adapter(a.adapter)
    from ..bench.report import bits_table, score_table
    from ..bench.run import Bench
    from ..bench.scorer import load_scorer
    from ..bench.tasks import Library, scene_tokens
    from ..faid import Faid

    scorer = load_scorer(a.scorer)
    prompts = read_prompts(shipped.BENCH / "prompts.jsonl")
    scenes = _limited(read_scenes(shipped.BENCH), a.limit)
    checkpoint = load_model(a)
    adapted = any(method in ADAPTED for method in methods)
    faid = Faid(load_adapter_flag(checkpoint, a.adapter)) if adapted else None
    bench = Bench(checkpoint, Library(checkpoint, index), scorer, faid)
    tokens = scene_tokens(checkpoint, scenes, shipped.BENCH)
    parts = [_ceiling(bench, scenes, tokens)]
    told = [m for m in methods if m not in ADAPTED]
    parts.append(bits_table(bench.likelihoods(tokens, scenes, ["plain", *_without(told, "plain")])))
    drawn = _draw(bench, kinds, methods, prompts, (scenes, tokens), a)
    parts.append(score_table({key: pictures.score() for key, pictures in drawn.items()}))
    parts.append(_distances(scorer, drawn, methods))
    table = "\n\n".join(part for part in parts if part)
    print(table)
    if a.out is not None:
        a.out.mkdir(parents=True, exist_ok=True)
        _write(a.out, table, drawn)
    return 0


def _chosen(text: str, known: tuple[str, ...], what: str) -> list[str]:
    chosen = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in known] or not chosen:
        raise InputError(f"--{what} has {unknown}; choose some of {', '.join(known)}")
    return list(dict.fromkeys(chosen))


def _without(names: list[str], one: str) -> list[str]:
    return [name for name in names if name != one]


def _limited(scenes: list[BenchScene], limit: int | None) -> list[BenchScene]:
    """At most `limit` of each split, evenly taken."""
    kept = []
    for split in dict.fromkeys(scene.split for scene in scenes):
        these = [scene for scene in scenes if scene.split == split]
        count = min(limit or len(these), len(these))
        kept += [these[i] for i in np.linspace(0, len(these) - 1, count).round().astype(int)]
    return kept


def _ceiling(bench: Bench, scenes: list[BenchScene], tokens: np.ndarray) -> str:
    """How often the scorer is right on real scenes, and on what the VQ makes of them."""
    from ..bench.report import share_table
    from ..bench.run import judged_scenes
    from ..bench.tasks import decode_tokens

    pixels = np.stack([scene.pixels for scene in scenes])
    returned = decode_tokens(bench.checkpoint, tokens)
    columns = {
        "real": judged_scenes(bench.scorer, scenes, pixels),
        "reconstructed": judged_scenes(bench.scorer, scenes, returned),
    }
    return share_table("scorer right on", columns)


def _draw(
    bench: Bench,
    kinds: list[str],
    methods: list[str],
    prompts: list,
    scenes: tuple[list[BenchScene], np.ndarray],
    a: argparse.Namespace,
) -> dict[tuple[str, str], Pictures]:
    from ..bench.run import use_of
    from ..bench.tasks import make_tasks

    tasks: dict[str, list[Task]] = {
        kind: make_tasks(kind, prompts, *scenes, bench.grid[1], a.limit) for kind in kinds
    }
    drawn = {}
    with progress_bar("prompt") as bar:
        bar.total = len(methods) * sum(map(len, tasks.values()))

        def tick(label: str) -> None:
            bar.set_description(label)
            bar.update()

        for kind in kinds:
            for method in methods:
                use, seeds = use_of(kind), range(a.first_seed, a.first_seed + a.seeds)
                drawn[kind, method] = bench.draw(use, method, tasks[kind], seeds, tick)
    return drawn


def _distances(scorer, drawn: dict[tuple[str, str], Pictures], methods: list[str]) -> str:
    """Fréchet distance of GenEval's six kinds to real scenes of these kinds."""
    from ..bench.measures import frechet_distance, moments

    reference = load_file(shipped.BENCH / "features.safetensors")
    lines = []
    for method in methods:
        parts = [drawn[kind, method].pixels for kind in KINDS if (kind, method) in drawn]
        pixels = [picture for part in parts for picture in part]
        if len(parts) == len(KINDS) and len(pixels) > 1:
            found = moments(scorer.features(np.stack(pixels)))
            distance = frechet_distance(found, (reference["mean"], reference["covariance"]))
            lines.append(f"{method:<8} {distance:.3f} ({len(pixels)} pictures)")
    return "Fréchet distance to real scenes\n" + "\n".join(lines) if lines else ""


def _write(folder: Path, table: str, drawn: dict[tuple[str, str], Pictures]) -> None:
    from ..bench.report import write_sheet

    with atomic_write(folder / "table.txt") as temporary:
        temporary.write_text(table + "\n", encoding="utf-8")
    scores = [
        {"kind": kind, "method": method, **asdict(pictures.score())}
        for (kind, method), pictures in drawn.items()
    ]
    with atomic_write(folder / "scores.json") as temporary:
        temporary.write_text(json.dumps(scores, indent=1), encoding="utf-8")
    for (kind, method), pictures in drawn.items():
        write_sheet(pictures, folder / f"{kind}-{method}.png")


def calibrate(a: argparse.Namespace) -> int:
    """Fit the weight "auto" of an index to a model, on pictures that the index lacks."""
    out = check_output(a.out, ".safetensors")
    options = RetrievalOptions(
        0.1, a.retrieval_temperature, a.neighbours, a.duplicates, a.retrieval_top_p
    )
    check_inputs(a)
    if a.known is not None:
        check_folder(a.known)
    with locked(out):
        return _calibrate(a, out, options)


def _calibrate(a: argparse.Namespace, out: Path, options: RetrievalOptions) -> int:
    index = load_index(shipped.resolve(a.index, shipped.INDEXES))
    from ..calibrate import fit
    from ..retrieval import make_retriever

    checkpoint = load_model(a)
    model = checkpoint.model
    retriever = make_retriever(index, model.config.grid, model.vq.codebook(model.device))
    seen = _observed(a.images, checkpoint, retriever, options, a.limit)
    if a.known is None:
        known = _observed_own(checkpoint, retriever, options)
    else:
        known = _observed(a.known, checkpoint, retriever, options, a.limit)
    found = fit(seen, options, a.ceiling, known, a.harm)
    save_index(replace(index, calibration=found.calibration), out)
    print(
        f"{len(seen.p_model)} positions: bits per token {found.bits_model:.3f} without retrieval, "
        f"{found.bits_fixed:.3f} with weight {found.best_fixed:.2f} everywhere, "
        f"{found.bits_auto:.3f} with auto, which has a say at {found.heard:.0%} of them"
    )
    print(
        f"what the model knows: {found.known_model:.3f} without retrieval, "
        f"{found.known_auto:.3f} with auto, which spoils a share of {found.spoiled:.5f} of its "
        "tokens"
    )
    print(out)
    return 0


def _observed_own(
    checkpoint: Checkpoint, retriever: Retriever, options: RetrievalOptions
) -> Observations:
    """What retrieval finds for pictures that the model draws by itself."""
    from ..calibrate import OWN_PICTURES, observe, own_pictures

    print(
        f"{checkpoint.name} draws {OWN_PICTURES} pictures by itself; they count as known",
        flush=True,
    )
    model, encoder = checkpoint.model, checkpoint.prompt_encoder
    pictures = own_pictures(model, encoder, checkpoint.sampling, OWN_PICTURES)
    with progress_bar("picture") as bar:
        bar.total = OWN_PICTURES
        return observe(model, encoder, retriever, pictures, options, bar.update)


def _observed(
    folder: Path,
    checkpoint: Checkpoint,
    retriever: Retriever,
    options: RetrievalOptions,
    limit: int | None,
) -> Observations:
    """What retrieval finds for the pictures of a folder that the index lacks."""
    from ..build import encode_folder
    from ..calibrate import observe

    model = checkpoint.model
    with progress_bar("picture") as bar:
        known = retriever.source.sources.names_by_hash()
        encoded = encode_folder(model, folder, None, known, False, progress=follow(bar))
    print_report(replace(encoded.report, duplicates=[]))  # it is right that the index has some
    pictures = [(t, s.caption) for t, s in zip(encoded.tokens, encoded.sources, strict=True)]
    if not pictures:
        raise InputError(f"{folder} holds no readable picture that the index lacks; use others")
    if limit is not None and limit < len(pictures):
        rows = np.linspace(0, len(pictures) - 1, limit).round().astype(int)
        pictures = [pictures[row] for row in rows]
    with progress_bar("picture") as bar:
        bar.total = len(pictures)
        encoder = checkpoint.prompt_encoder
        return observe(model, encoder, retriever, pictures, options, bar.update)
