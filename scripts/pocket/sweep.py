r"""Which retrieval settings work: one at a time from the best point, and λ × τ × K together.

    python scripts/pocket/sweep.py bits --index INDEX --out sweep-bits.json
    python scripts/pocket/sweep.py draw --index INDEX --kinds concept --out sweep-draw.json
    python scripts/pocket/sweep.py draw --index INDEX --kinds concept --variants "as set" \
        --keys "causal-24 zero place 2" --temperature 0.6 --seeds 2 --first-seed 8 --out one.json
    python scripts/pocket/sweep.py sampling --kinds "$SIX" --sampling 1.5/0.2,1.5/0.8/0.95 \
        --limit 8 --seeds 4 --first-seed 8 --out sampling.json
    python scripts/pocket/sweep.py sampling --kinds concept --sampling 1/0.3 \
        --retrieval 0.9/0.2/16,1/0.05/16 --seeds 4 --first-seed 8 --out retrieval.json
    python scripts/pocket/sweep.py sampling --model pocket-o --index pocket-o --kinds "$SIX" \
        --sampling 2/1 --schedule 8/1,16/1,32/1 --seeds 4 --first-seed 8 --out schedule.json

`bits`: teacher-forced bits per token that shows a thing, on every split of the benchmark's scenes,
beside the same settings with an index that lacks the things or the style. `draw`: share of right
pictures for variants of the settings that `eval pocket` uses, or of a single `--sampling`,
`--schedule` and `--retrieval`. `sampling`: share of right pictures and variety between seeds for
each combination of `--sampling` (guidance/temperature/top-p), `--schedule` (of models that draw in
any order: steps/temperature of the choice/curve/confidence/grow) and `--retrieval`
(λ/τ/K/duplicates/top-p; none: the model alone), the prompts as a user writes them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine import shipped
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.checkpoints.adapter import load_adapter
from arrag_engine.evaluate.measures import mean_and_spread, seed_variety
from arrag_engine.evaluate.pictures import Pictures
from arrag_engine.evaluate.run import draw_tasks
from arrag_engine.faid import Faid
from arrag_engine.grid import RASTER, DrawingOrder
from arrag_engine.index import Hits, KeySpec, load_index
from arrag_engine.likelihood import bits, model_probabilities
from arrag_engine.models.ops import pack_linears
from arrag_engine.retrieval import Steering, proposal_distribution
from arrag_engine.settings import (
    BORDER_KEYS,
    CONFIDENCES,
    DISTANCES,
    MASK_CURVES,
    RetrievalOptions,
    Sampling,
    Schedule,
)
from scripts.pocket.bench import DATA, PROMPTS, SCORER
from scripts.pocket.bench.benchmark import Bench, use_of
from scripts.pocket.bench.library import Library
from scripts.pocket.bench.measures import foreground
from scripts.pocket.bench.prompts import BenchPrompt, of_kind, read_prompts
from scripts.pocket.bench.scenes import BenchScene, limited, read_scenes
from scripts.pocket.bench.scorer import load_scorer
from scripts.pocket.bench.settings import COMPLETION, TEACHER_FORCED, Use
from scripts.pocket.bench.tasks import Material, scene_tokens

WEIGHTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
TEMPERATURES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
NEIGHBOURS = (4, 16, 64, 256)
KEYS = (
    "causal-4",
    "causal-4 codebook",
    "causal-4 zero",
    "causal-8",
    "causal-8 zero",
    "causal-8 zero codebook",
    "causal-8 zero place 0.5",
    "causal-8 zero place 2",
    "causal-8 zero place 8",
    "causal-12 zero place 2",
    "causal-12 zero codebook place 2",
    "causal-24 zero place 2",
)
BEST = "causal-8 zero place 2"
"""Keys that the other settings are changed with, in bits."""
SPANS = {
    "rising": Steering(curve="linear"),
    "falling": Steering(start=1.0, end=0.0, curve="linear"),
    "in the first half": Steering(end=0.5),
    "in the second half": Steering(start=0.5),
}
"""When a layer of a model that draws in any order works."""
SCHEDULE_PARTS = {"temperature": float, "curve": str, "confidence": str, "grow": "grow".__eq__}
"""After the steps, as `--schedule` names them."""


def spec_of(label: str) -> KeySpec:
    """Keys by name: neighbourhood, "zero" borders, "codebook" space, "place" and its weight."""
    neighborhood, *words = label.split()
    place = float(words[words.index("place") + 1]) if "place" in words else 0.0
    return KeySpec(
        neighborhood,
        "zero" if "zero" in words else "skip",
        "codebook" if "codebook" in words else "encoder",
        place,
    )


@dataclass(frozen=True)
class Truth:
    """A scene's tokens, what the model gives them, and which of them show a thing."""

    scene: BenchScene
    tokens: np.ndarray
    p_model: np.ndarray
    marked: np.ndarray


def make_truths(bench: Bench, scenes: list[BenchScene]) -> list[Truth]:
    tokens = scene_tokens(bench.checkpoint, scenes, DATA)
    encoder, truths = bench.checkpoint.prompt_encoder, []
    for scene, grid in zip(tqdm(scenes, desc="model"), tokens, strict=True):
        prompt = encoder.encode(scene.truth.text)
        p = model_probabilities(bench.checkpoint.model, prompt.ids, prompt.unconditional, grid)
        true = p[torch.arange(len(grid)), torch.from_numpy(grid)].numpy().astype(np.float64)
        truths.append(Truth(scene, grid, true, scene.covers(*bench.grid)))
    return truths


def search(bench: Bench, use: Use, control: bool, truths: list[Truth]) -> list[Hits]:
    """The nearest max(NEIGHBOURS) of every active position."""
    retriever = bench.library.retriever(use, "control" if control else "daid", "")
    assert retriever is not None
    positions = np.flatnonzero(retriever.active)
    return [retriever.lookup(t.tokens, positions, max(NEIGHBOURS)) for t in truths]


def weigh(
    truths: list[Truth], found: list[Hits], active: np.ndarray, options: RetrievalOptions
) -> np.ndarray:
    """Bits per marked token for each of WEIGHTS."""
    mixed: list[list[np.ndarray]] = [[] for _ in WEIGHTS]
    vocab, k = 1 + max(int(n.codes.max()) for n in found), options.neighbours
    vocab = max(vocab, 1 + max(int(t.tokens.max()) for t in truths))
    for truth, n in zip(truths, found, strict=True):
        proposed = proposal_distribution(n.nearest(k), options, vocab).double().numpy()
        true = proposed[np.arange(len(active)), truth.tokens[active]]
        for row, weight in zip(mixed, WEIGHTS, strict=True):
            p = truth.p_model.copy()
            p[active] = (1 - weight) * p[active] + weight * true
            row.append(p[truth.marked])
    return np.array([bits(np.concatenate(row)) for row in mixed])


def bit_settings(keys: str = BEST) -> Iterator[tuple[str, str, RetrievalOptions]]:
    """(label, keys, options) one at a time from the best point, then τ × K together."""
    best = RetrievalOptions(0.25, 0.2, 64)
    for name in KEYS:
        yield f"keys {name}", name, best
    yield "duplicates sum", keys, replace(best, duplicates="sum")
    for top_p in (0.5, 0.9):
        yield f"top-p {top_p}", keys, replace(best, top_p=top_p)
    for temperature, k in itertools.product(TEMPERATURES, NEIGHBOURS):
        yield (
            f"τ {temperature} K {k}",
            keys,
            replace(best, temperature=temperature, neighbours=k),
        )


def sweep_bits(bench: Bench, scenes: list[BenchScene], args: argparse.Namespace) -> list[dict]:
    rows = []
    begin = tuple((args.variants or "").split(","))
    chosen = [
        setting for setting in bit_settings(args.keys or BEST) if setting[0].startswith(begin)
    ]
    for split, use in TEACHER_FORCED.items():
        truths = make_truths(bench, [scene for scene in scenes if scene.split == split])
        plain = bits(np.concatenate([t.p_model[t.marked] for t in truths]))
        rows.append({"split": split, "label": "plain", "bits": [plain] * len(WEIGHTS)})
        print(f"{split}: plain {plain:.3f}")
        known: dict = {}
        for label, keys, options in tqdm(chosen, desc=split):
            row: dict = {"split": split, "label": label}
            for control in (False, True):
                mine = replace(use, spec=spec_of(keys))
                if (keys, control) not in known:
                    known[keys, control] = search(bench, mine, control, truths)
                active = bench.library.view(mine, control, "").active
                values = weigh(truths, known[keys, control], active, options)
                row["control" if control else "bits"] = values.round(4).tolist()
            rows.append(row)
            best = int(np.argmin(row["bits"]))
            print(
                f"{split:<7} {label:<28} best λ {WEIGHTS[best]:<5} {row['bits'][best]:.3f} "
                f"({row['bits'][best] / plain - 1:+.1%})  control {min(row['control']):.3f}"
            )
    return rows


def draw_variants(use: Use, order: DrawingOrder = RASTER) -> dict[str, Use]:
    """The settings of a use, and each of them changed alone."""
    variants = {"as set": use}

    def options(label: str, **changes) -> None:
        variants[label] = replace(use, options=replace(use.options, **changes))

    for weight in (0.05, 0.1, 0.3, 0.5, 0.6, 0.8, 0.9, 1.0):
        options(f"weight {weight}", weight=weight)
    for k in (4, 16, 64):
        options(f"neighbours {k}", neighbours=k)
    for temperature in (0.05, 0.2, 1.0):
        options(f"temperature {temperature}", temperature=temperature)
    for top_p in (0.5, 0.8, 1.0):
        options(f"retrieval top-p {top_p}", top_p=top_p)
        variants[f"top-p {top_p}"] = replace(use, sampling=replace(use.sampling, top_p=top_p))
    options("duplicates sum", duplicates="sum")
    for cfg in (1.0, 2.0, 4.0, 5.0):
        variants[f"guidance {cfg}"] = replace(use, sampling=replace(use.sampling, cfg=cfg))
    variants |= raster_variants(use) if order.raster else any_order_variants(use)
    variants["the caption told"] = replace(use, blank=False)
    variants["no caption"] = replace(use, blank=True)
    variants["all pictures"] = replace(use, by_word=False, parts=("",))
    return {label: variant for label, variant in variants.items() if variant != use} | {
        "as set": use
    }


def raster_variants(use: Use) -> dict[str, Use]:
    """What models in raster order alone have."""
    return {f"keys {name}": replace(use, spec=spec_of(name)) for name in KEYS}


def any_order_variants(use: Use) -> dict[str, Use]:
    """What models in any order alone have."""
    variants = {}

    def options(label: str, **changes) -> None:
        variants[label] = replace(use, options=replace(use.options, **changes))

    def schedule(label: str, **changes) -> None:
        variants[label] = replace(use, schedule=replace(use.schedule, **changes))

    for name in BORDER_KEYS:
        options(f"border keys {name}", border_keys=name)
    for name in DISTANCES:
        options(f"distances {name}", distances=name)
    for steps in (8, 16, 32):
        schedule(f"steps {steps}", steps=steps)
    for name in CONFIDENCES:
        schedule(f"confidence {name}", confidence=name)
    for grow in (False, True):
        schedule(f"grow {grow}", grow=grow)
    for temperature in (0.0, 0.5, 2.0):
        schedule(f"choice temperature {temperature}", temperature=temperature)
    for name in MASK_CURVES:
        schedule(f"schedule {name}", curve=name)
    for label, steering in SPANS.items():
        variants[f"weight {label}"] = replace(use, steering=steering)
    return variants


def changed(use: Use, args: argparse.Namespace) -> Use:
    """With the keys and the τ of the command line."""
    spec = spec_of(args.keys) if args.keys else use.spec
    temperature = args.temperature or use.options.temperature
    return replace(use, spec=spec, options=replace(use.options, temperature=temperature))


def draw_kind(bench: Bench, kind: str, use: Use, method: str, args: argparse.Namespace) -> Pictures:
    """What a method draws for the tasks of a kind under some settings."""
    changed_bench = replace(bench, uses={kind: use})
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    tasks = bench.tasks(kind)
    return Pictures.joined(draw_tasks(bench.checkpoint, changed_bench, tasks, method, seeds))


def sweep_draw(bench: Bench, scenes: list[BenchScene], args: argparse.Namespace) -> Iterator[dict]:
    kinds = args.kinds.split(",")
    unseen = [scene for scene in scenes if scene.split == "unseen"] if COMPLETION in kinds else []
    unseen = limited(unseen, args.limit)
    every = read_prompts(PROMPTS)
    prompts = [prompt for kind in kinds for prompt in of_kind(every, kind, args.limit)]
    tokens = scene_tokens(bench.checkpoint, unseen, DATA)
    bench = replace(bench, material=Material(prompts, unseen, tokens))
    for kind in kinds:
        order = bench.checkpoint.model.order
        base = with_settings(use_of(kind, order), args.sampling, args.schedule, args.retrieval)
        variants = draw_variants(changed(base, args), order)
        chosen = args.variants.split(",") if args.variants else list(variants)
        for label in tqdm(chosen, desc=kind):
            drawn = draw_kind(bench, kind, variants[label], "daid", args)
            right, objects, copied = map(drawn.mean, ("right", "objects", "copied"))
            print(
                f"{kind:<14} {label:<26} right {right:.3f} objects {objects:.3f} {copied:.2f}",
                flush=True,
            )
            yield {"kind": kind, "label": label, "right": right, "copied": copied}


def sampling_of(label: str) -> Sampling:
    """Guidance, temperature and top-p by name: "1.5/0.8/0.95"; the last may be left out."""
    cfg, temperature, *top_p = map(float, label.split("/"))
    return Sampling(cfg, temperature, top_p=top_p[0] if top_p else 1.0)


def retrieval_of(label: str, base: RetrievalOptions | None = None) -> RetrievalOptions:
    """λ, τ, K, duplicates and top-p by name: "1/0.05/16/sum/0.9"; the last two may be left out, and
    have their defaults then.

    Args:
        base: Has the other options.
    """
    base = base or RetrievalOptions()
    weight, temperature, neighbours, *rest = label.split("/")
    numbers = RetrievalOptions(float(weight), float(temperature), int(neighbours))
    options = replace(numbers, border_keys=base.border_keys, distances=base.distances)
    if rest:
        options = replace(options, duplicates=rest[0], top_p=float(rest[1]) if rest[1:] else 1.0)
    return options


def schedule_of(label: str, base: Schedule) -> Schedule:
    """Steps, temperature of the choice, curve, confidence and growing by name:
    "16/1/cosine/model/grow"; the last ones may be left out, and are those of `base` then."""
    steps, *rest = label.split("/")
    numbers = replace(base, steps=int(steps))
    for (name, read), value in zip(SCHEDULE_PARTS.items(), rest, strict=False):
        numbers = replace(numbers, **{name: read(value)})
    return numbers


def with_settings(
    use: Use, sampling: str | None, schedule: str | None, retrieval: str | None
) -> Use:
    """A use with settings by name; None: its own."""
    if sampling:
        use = replace(use, sampling=sampling_of(sampling))
    if schedule:
        use = replace(use, schedule=schedule_of(schedule, use.schedule))
    if retrieval:
        use = replace(use, options=retrieval_of(retrieval, use.options))
    return use


def varieties(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each seed's `seed_variety` [seeds], over all tokens and off the plain background, of tokens
    [tasks, seeds, N]; means over the tasks."""
    everywhere = [seed_variety(pictures) for pictures in tokens]
    off_ground = [seed_variety(pictures, foreground(pictures)) for pictures in tokens]
    return np.mean(everywhere, axis=0), np.mean(off_ground, axis=0)


def scores_of(drawn: Pictures, seeds: int) -> dict[str, float | list[float] | None]:
    """What `sampling` reports of the pictures of a setting, seed by seed."""
    tokens = np.stack(drawn.tokens)
    variety, off_ground = varieties(tokens.reshape(-1, seeds, tokens.shape[1]))
    return {
        "right": list(drawn.by_seed("right")),
        "variety": variety.tolist(),
        "off ground": off_ground.tolist(),
        "copied": drawn.mean("copied"),
    }


def sweep_sampling(
    bench: Bench, prompts: list[BenchPrompt], args: argparse.Namespace
) -> Iterator[dict]:
    """A row for each setting and kind, then one for all kinds together."""
    method = "+".join(["faid"] * bool(bench.faid) + ["daid"] * bool(args.retrieval)) or "plain"
    kinds = args.kinds.split(",")
    prompts = [prompt for kind in kinds for prompt in of_kind(prompts, kind, args.limit)]
    bench = replace(bench, material=Material(prompts))
    retrievals = args.retrieval.split(",") if args.retrieval else [None]
    schedules = args.schedule.split(",") if args.schedule else [None]
    samplings = (args.sampling or "1.5/0.2").split(",")
    for labels in itertools.product(samplings, schedules, retrievals):
        every = Pictures()
        for kind in kinds:
            own = replace(use_of(kind, bench.checkpoint.model.order), blank=False)
            use = with_settings(changed(own, args), *labels)
            drawn = draw_kind(bench, kind, use, method, args)
            every.extend(drawn)
            yield sampling_row(method, labels, kind, scores_of(drawn, args.seeds))
        if len(kinds) > 1:
            yield sampling_row(method, labels, "all", scores_of(every, args.seeds))


def sampling_row(
    method: str, labels: tuple[str, str | None, str | None], kind: str, scores: dict
) -> dict:
    """The row for the JSON file, printed."""
    right, variety, off_ground = (
        "{:.3f} ±{:.3f}".format(*mean_and_spread(scores[name]))
        for name in ("right", "variety", "off ground")
    )
    copied = "" if scores["copied"] is None else f"copied {scores['copied']:.2f}"
    named = " ".join(
        f"{label or '':<{width}}" for label, width in zip(labels, (12, 18, 18), strict=True)
    )
    print(
        f"{method:<9} {named} {kind:<13} right {right}  "
        f"variety {variety}  off the background {off_ground}  {copied}",
        flush=True,
    )
    names = dict(zip(("sampling", "schedule", "retrieval"), labels, strict=True))
    return {"method": method} | names | {"kind": kind} | scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("bits", "draw", "sampling"))
    parser.add_argument("--model", default="pocket", help="path or shipped name")
    parser.add_argument("--index", default="pocket", help="path or shipped name")
    parser.add_argument("--limit", type=int, help="scenes of a split, or prompts of a kind")
    parser.add_argument("--kinds", default="concept,completion,style", help="for draw and sampling")
    parser.add_argument("--variants", help="labels; for bits, what they begin with")
    parser.add_argument("--keys", help=f"change the others with these keys, such as {BEST!r}")
    parser.add_argument("--temperature", type=float, help="for draw: and with this τ")
    parser.add_argument("--sampling", help="guidance/temperature/top-p, …")
    parser.add_argument("--schedule", help="steps/temperature/curve/confidence/grow, …")
    parser.add_argument("--retrieval", help="λ/τ/K/duplicates/top-p, …")
    parser.add_argument("--adapter", help="for sampling: path or shipped name")
    parser.add_argument("--seeds", type=int, default=1, help="for sampling 2 or more")
    parser.add_argument("--first-seed", type=int, default=0, help="draw others than `eval` does")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    args = parser.parse_args()
    if args.what == "sampling" and args.seeds < 2:
        parser.error("variety compares seeds; pass --seeds 2 or more")
    checkpoint = load_checkpoint(shipped.resolve(args.model, shipped.MODELS), torch.float32)
    pack_linears(checkpoint.model)
    index = load_index(shipped.resolve(args.index, shipped.INDEXES))
    scorer = load_scorer(SCORER)
    faid = None
    if args.adapter:
        path = shipped.resolve(args.adapter, shipped.ADAPTERS)
        faid = Faid(load_adapter(path, checkpoint, torch.float32))
    bench = Bench(checkpoint, Library(checkpoint, index), scorer, faid)
    scenes = read_scenes(DATA)
    if args.what == "bits":
        if args.limit:
            counts: dict[str, int] = {}
            for scene in scenes:
                counts[scene.split] = counts.get(scene.split, 0) + 1
            steps = {split: max(1, count // args.limit) for split, count in counts.items()}
            numbers = {split: itertools.count() for split in counts}
            scenes = [s for s in scenes if next(numbers[s.split]) % steps[s.split] == 0]
        rows = sweep_bits(bench, scenes, args)
    elif args.what == "sampling":
        prompts = read_prompts(PROMPTS)
        rows = list(sweep_sampling(bench, prompts, args))
    else:
        rows = list(sweep_draw(bench, scenes, args))
    args.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
