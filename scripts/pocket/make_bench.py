"""Write what `eval pocket` needs: prompts, real scenes with their truth, moments of features.

    python scripts/pocket/make_bench.py --archives NPM --scorer SCORER --pictures PICTURES \
        --model MODEL --usage WORK/usage.npz

PICTURES are those of the index (`write_pictures`): no scene is one of them.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from captions import KINDS, STYLE_WORDS, write
from captions import Meaning as CaptionMeaning
from concepts import LEARNT, UNSEEN
from data import Composer, Scene, make_composer
from patches import patch_contents
from PIL import Image
from safetensors.numpy import save_file
from tokens import Usage
from train_scorer import SCORER
from training import scaled

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.evaluate.measures import moments
from scripts.pocket.bench import DATA
from scripts.pocket.bench.prompts import CONCEPT, STYLE, BenchPrompt, Wanted, write_prompts
from scripts.pocket.bench.scenes import BenchScene, read_scenes, write_scenes
from scripts.pocket.bench.scorer import load_scorer
from scripts.pocket.bench.tasks import encode_pixels

SEED = 20_000_000
PROMPTS = 52
"""Of each kind; the others come from the names."""
BACKGROUNDS = ("white", "blue")
SEEN, STYLED = 16, 10
"""Scenes of each kind in the seen things' style, and in the unseen style."""
SINGLES = 2
"""Scenes of each unseen thing."""
REFERENCE = 300
"""Scenes of each kind that the moments are taken of."""


def truth_of(scene: Scene) -> BenchPrompt:
    """What a picture of the scene's caption must show."""
    counts = Counter((thing.name, thing.color) for thing in scene.things)
    include = [Wanted(name, count, color) for (name, color), count in counts.items()]
    exclude: tuple[tuple[str, int], ...] = ()
    if scene.kind == "counting":
        exclude = ((include[0].name, include[0].count + 1),)
    if scene.kind == "position":  # GenEval names the thing first that the other is relative to
        relation = next(r for r in RELATIONS if f" {r} " in scene.caption)
        first, second = include
        include = [second, Wanted(first.name, 1, first.color, (relation, 0))]
    style = scene.style if scene.style != "fluent" else None
    return BenchPrompt(scene.kind, scene.caption, tuple(include), exclude, style)


RELATIONS = ("left of", "right of", "above", "below")


def draw_prompts(
    composer: Composer, kind: str, rng: np.random.Generator, count: int = PROMPTS
) -> list[BenchPrompt]:
    """`count` different captions of one kind, their things as even as chance allows; colours
    only where the kind asks for them."""
    colored = kind in ("colors", "color_attr")
    used: Counter[str] = Counter()
    prompts: dict[str, BenchPrompt] = {}
    while len(prompts) < count:
        scene = composer.scene(rng, kind)
        names = {thing.name for thing in scene.things}
        if not colored and any(thing.color for thing in scene.things):
            continue
        limit = 1 + min(used[name] for name in composer.names) + (kind not in ("single_object",))
        if kind in ("single_object", "two_object", "position") and any(
            used[name] > limit for name in names
        ):
            continue
        used.update(names)
        prompts.setdefault(scene.caption, truth_of(scene))
    return list(prompts.values())


def special_prompts() -> list[BenchPrompt]:
    """Unseen things, and learnt things in the unseen style, alone and on a background."""
    prompts = []
    for background in (None, "blue"):
        for name in UNSEEN:
            meaning = CaptionMeaning("single_object", ((name, None),), None, background)
            prompts.append(BenchPrompt(CONCEPT, write(meaning), (Wanted(name),)))
    for name in LEARNT:
        meaning = CaptionMeaning("single_object", ((name, None),), None, None, "google")
        assert STYLE_WORDS["google"] in write(meaning)
        prompts.append(BenchPrompt(STYLE, write(meaning), (Wanted(name),), style="google"))
    return prompts


def bench_scenes(archives: Path, taken: set[str], scale: float) -> list[BenchScene]:
    rng = np.random.default_rng(SEED + 1)
    seen = make_composer(archives, LEARNT, split="held_out")
    style = make_composer(archives, LEARNT, "google", "train")  # the index has held-out ones
    chosen = [("seen", seen, kind) for kind in KINDS for _ in range(scaled(SEEN, scale))]
    single = [Composer(seen.sprites, (name,), "train") for name in UNSEEN]
    chosen += [("unseen", composer, "single_object") for composer in single] * scaled(
        SINGLES, scale
    )
    chosen += [("style", style, kind) for kind in KINDS for _ in range(scaled(STYLED, scale))]
    scenes = []
    for split, composer, kind in chosen:
        scene = composer.scene(rng, kind)
        while digest(scene.pixels) in taken:
            scene = composer.scene(rng, kind)
        taken.add(digest(scene.pixels))
        boxes = tuple(tuple(int(x) for x in thing.box) for thing in scene.things)
        scenes.append(BenchScene(scene.pixels, split, truth_of(scene), boxes))
    return scenes


def write_tokens(args: argparse.Namespace) -> None:
    """Tokens of the scenes, by the codes that the decoder has learnt."""
    checkpoint = load_checkpoint(args.model, torch.float32)
    pixels = np.stack([scene.pixels for scene in read_scenes(args.out)])
    usage = Usage.load(args.usage)
    tokens = usage.settle(patch_contents(pixels), encode_pixels(checkpoint, pixels))
    codebook = checkpoint.model.vq.codebook(checkpoint.model.device)
    tensors = {"tokens": tokens.astype(np.uint16), "codebook": codebook}
    save_file(tensors, args.out / "tokens.safetensors")


def digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archives", type=Path, required=True, help="folder of the packages")
    parser.add_argument("--scorer", type=Path, required=True, help="scorer file")
    parser.add_argument("--pictures", type=Path, required=True, help="pictures of the index")
    parser.add_argument("--model", type=Path, required=True, help="the model file")
    parser.add_argument("--usage", type=Path, required=True, help="WORK/usage.npz of its training")
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write to")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of scenes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    composer = make_composer(args.archives, LEARNT, split="held_out")
    rng = np.random.default_rng(SEED)
    count, reference = scaled(PROMPTS, args.scale), scaled(REFERENCE, args.scale)
    prompts = [prompt for kind in KINDS for prompt in draw_prompts(composer, kind, rng, count)]
    write_prompts(prompts + special_prompts(), args.out / "prompts.jsonl")
    files = args.pictures.rglob("*.png")
    taken = {digest(np.asarray(Image.open(file).convert("RGB"))) for file in files}
    write_scenes(bench_scenes(args.archives, taken, args.scale), args.out)
    scenes = [composer.scene(rng, kind) for kind in KINDS for _ in range(reference)]
    features = load_scorer(args.scorer).features(np.stack([scene.pixels for scene in scenes]))
    write_tokens(args)
    if args.scorer.resolve() != (args.out / SCORER).resolve():
        shutil.copy(args.scorer, args.out / SCORER)
    mean, covariance = moments(features)
    tensors = {"mean": mean.astype(np.float32), "covariance": covariance.astype(np.float32)}
    save_file(tensors, args.out / "features.safetensors")


if __name__ == "__main__":
    main()
