"""Train a pocket model's FAiD adapter, beside it the same without retrieval, and compare them.

    python scripts/pocket/train_adapter.py --work WORK --model MODEL --index INDEX \
        --usage WORK/usage.npz --out OUT/adapters/pocket.safetensors --workers 2

MODEL is `pocket`, which draws in raster order, or `pocket-o`, which draws in any order; each has
settings of its own. `--device cuda` trains on a GPU, with one worker.

What it learns from is what the base draws badly and an index knows, beside what the base knows: 186
kinds that are neither LEARNT nor UNSEEN, a posterised style, learnt scenes. Each picture looks its
patches up in other pictures of the same sort. What it is tested on, UNSEEN kinds and Google's style
with the shipped index, is none of these. Runs go on where they stopped; WORK/adapter-report.json
has what came out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import training
from concepts import CONCEPTS, LEARNT, UNSEEN
from data import EVENLY, Composer, Scene, make_composer
from finish import KEYS
from patches import patch_contents
from PIL import Image, ImageOps
from sprites import Sprites
from tokens import ENCODE_BATCH, Usage
from tqdm import tqdm
from train_vq import to_images

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine.api import choose_device
from arrag_engine.checkpoints import Checkpoint, load_checkpoint
from arrag_engine.checkpoints.adapter import (
    AdapterInfo,
    index_fingerprint,
    load_adapter,
    save_adapter,
)
from arrag_engine.index import KeySpec, PatchIndex, Source, create_index, load_index, save_index
from arrag_engine.retrieval import Places, make_retriever
from arrag_engine.settings import HOPS
from arrag_engine.train import Examples, Place, RunFolder, Team, TrainSettings, score, train_adapter
from arrag_engine.train.data import retrieve_codes
from scripts.pocket.bench import DATA as BENCH
from scripts.pocket.bench.scenes import BenchScene, read_scenes
from scripts.pocket.bench.tasks import scene_tokens

OTHER = tuple(name for name in CONCEPTS if name not in (*LEARNT, *UNSEEN))
POSTER = "in poster style"
"""What captions call the posterised style; the decoder knows none of the words."""
PICTURES = {"known": 3000, "other": 1488, "poster": 512}
"""To train on."""
LIBRARY = {"known": 300, "other": 930, "poster": 270}
"""To look up in: five of every other kind, of poster scenes as many as of any in `style/`."""
SETTINGS = TrainSettings(
    steps=500,
    batch=16,
    accumulation=1,
    lr=5e-4,
    blender_lr=0.2,
    blender_every=0,
    blender_from=3,
    init="copy",
    candidates=4,
    caption_dropout=0.15,
    blend_dropout=0.5,
    every=100,
)
MASKED = replace(SETTINGS, steps=300, rank=32, alpha=64.0, hops=(1,), blender_from=2)
"""For the smaller model that draws in any order: less than 2 MB."""
AROUND = KeySpec("ring-8", "zero", "codebook")
"""Keys of what it looks up."""
DATA, LIBRARY_FILE = "adapter-data", "library.safetensors"
FLAGS = ("steps", "batch", "lr", "blender_lr", "gain", "candidates", "caption_dropout", "rank")
FLAGS = (*FLAGS, "blender_from", "blender_every")
"""Settings that the command line can change."""


@dataclass(frozen=True)
class Shown:
    """Scenes and their codes."""

    scenes: list[Scene]
    tokens: np.ndarray
    """[M, N], settled."""
    vectors: np.ndarray
    """[M, N, dim] of these codes where they are settled, else the encoder's."""

    @property
    def digests(self) -> list[bytes]:
        return [hashlib.sha256(scene.pixels.tobytes()).digest() for scene in self.scenes]


def make_composers(archives: Path) -> dict[str, Composer]:
    known = make_composer(archives, LEARNT, shares=EVENLY)
    sprites = known.sprites
    pictures = {name: posterise(sprites.pictures[name]) for name in LEARNT}
    poster = Sprites(pictures, sprites.style)
    return {
        "known": known,
        "other": Composer(sprites, OTHER, "train"),
        "poster": Composer(poster, LEARNT, "train"),
    }


def posterise(picture: Image.Image) -> Image.Image:
    """A sprite in four even steps of each colour."""
    flat = ImageOps.posterize(picture.convert("RGB"), 2)
    flat.putalpha(picture.getchannel("A"))
    return flat


def draw_scenes(
    composers: dict[str, Composer], counts: dict[str, int], seed: tuple[int, int]
) -> list[Scene]:
    """So many scenes of each part; those of other kinds show one thing, every kind as often."""
    rng = np.random.default_rng(seed)
    scenes = [composers["known"].scene(rng) for _ in range(counts["known"])]
    for number in range(counts["other"]):
        composer = composers["other"]
        one = Composer(composer.sprites, (OTHER[number % len(OTHER)],), "train")
        one.paintings = composer.paintings
        scenes.append(one.scene(rng, "single_object"))
    for _ in range(counts["poster"]):
        scene = composers["poster"].scene(rng)
        scenes.append(replace(scene, caption=f"{scene.caption} {POSTER}"))
    return scenes


@torch.inference_mode()
def encode(checkpoint: Checkpoint, scenes: list[Scene], usage: Usage) -> Shown:
    vq, codebook = checkpoint.model.vq, checkpoint.model.vq.codebook(torch.device("cpu"))
    size = checkpoint.model.config.grid.size
    vq.to(memory_format=torch.channels_last)
    tokens = np.empty((len(scenes), size), np.int64)
    vectors = np.empty((len(scenes), size, codebook.shape[1]), np.float32)
    for first in tqdm(range(0, len(scenes), ENCODE_BATCH), desc="encode", unit="batch"):
        pixels = [scene.pixels for scene in scenes[first : first + ENCODE_BATCH]]
        rows = slice(first, first + len(pixels))
        codes, found = vq.encode(to_images(pixels))
        own = codes.flatten(1).numpy()
        tokens[rows] = usage.settle(patch_contents(np.stack(pixels)), own)
        moved = (tokens[rows] != own)[..., None]
        vectors[rows] = np.where(moved, codebook[tokens[rows]], found.flatten(1, 2).numpy())
    return Shown(scenes, tokens, vectors)


def make_library(checkpoint: Checkpoint, shown: Shown) -> PatchIndex:
    sources = [
        Source(f"{i}.png", scene.caption, 0, 0, digest.hex(), "", b"")
        for i, (scene, digest) in enumerate(zip(shown.scenes, shown.digests, strict=True))
    ]
    model, tokens = checkpoint.model, shown.tokens.astype(np.uint16)
    codebook = model.vq.codebook(torch.device("cpu"))
    if model.order.raster:
        return create_index(model.grid, tokens, shown.vectors, codebook, sources, KEYS, "ivf")
    return create_index(model.grid, tokens, None, codebook, sources, AROUND, "bits")


def make_examples(
    checkpoint: Checkpoint,
    index: PatchIndex,
    tokens: np.ndarray,
    captions: list[str],
    digests: list[bytes],
    k: int,
) -> Examples:
    """With what is retrieved for them, if that does not depend on masks."""
    sums = np.stack([np.frombuffer(digest, np.uint8) for digest in digests])
    if not checkpoint.model.order.raster:
        none = np.empty((*tokens.shape, 0), np.int32)
        return Examples(tokens, captions, sums, none, np.zeros(tokens.shape[1], bool))
    codebook = checkpoint.model.vq.codebook(torch.device("cpu"))
    retriever = make_retriever(index, checkpoint.model.grid, codebook)
    with tqdm(total=len(tokens), desc="search") as bar:
        codes = retrieve_codes(retriever, tokens, sums, k, lambda *_: bar.update())
    return Examples(tokens, captions, sums, codes, retriever.active)


def shares(counts: dict[str, int], share: float) -> dict[str, int]:
    """A share of the pictures of each part."""
    return {part: training.scaled(count, share) for part, count in counts.items()}


def prepare(checkpoint: Checkpoint, args: argparse.Namespace, candidates: int) -> None:
    """What both runs learn from, once: pictures, and the index that they look up in."""
    run, path = RunFolder(args.work / DATA), args.work / DATA / LIBRARY_FILE
    pictures = shares(PICTURES, args.scale * args.pictures)
    library = shares(LIBRARY, args.scale)
    facts = {"model": checkpoint.fingerprint, "seed": args.data_seed, "candidates": candidates}
    run.begin(facts | {"pictures": pictures, "library": library})
    composers, usage = make_composers(args.archives), Usage.load(args.usage)
    if not path.is_file():
        shown = encode(checkpoint, draw_scenes(composers, library, (args.data_seed, 1)), usage)
        save_index(make_library(checkpoint, shown), path)
    if run.examples.is_file():
        return
    shown = encode(checkpoint, draw_scenes(composers, pictures, (args.data_seed, 2)), usage)
    captions = [scene.caption for scene in shown.scenes]
    run.save_examples(
        make_examples(
            checkpoint, load_index(path), shown.tokens, captions, shown.digests, candidates
        )
    )


def train(team: Team, args: argparse.Namespace, settings: TrainSettings, run: RunFolder) -> None:
    """Train with or without retrieval and write the adapter."""
    checkpoint = load_checkpoint(args.model, torch.float32)
    out = adapter_path(args, settings)
    if team.leads:
        facts = asdict(settings) | {"model": checkpoint.fingerprint, "processes": team.size}
        run.begin(json.loads(json.dumps(facts)))
    team.wait()
    if out.exists():
        return
    examples = RunFolder(args.work / DATA).load_examples()
    examples = replace(examples, codes=examples.codes[..., : settings.looked_up])
    place = place_of(args)
    checkpoint.model.to(place.device)
    index = load_index(args.work / DATA / LIBRARY_FILE)
    with tqdm(total=settings.steps, desc=out.stem, disable=not team.leads) as bar:

        def report(step: int, _: int, bits: float) -> None:
            bar.set_postfix_str(f"{bits:.3f} bits a token", refresh=False)
            bar.update(step - bar.n)

        searched = on_place(index, place.device)
        adapter = train_adapter(
            checkpoint, examples, settings, run, place, team, report, index=searched
        )
    if team.leads:
        info = AdapterInfo(
            adapter.config,
            checkpoint.name,
            checkpoint.fingerprint,
            checkpoint.model.hidden_size,
            "library of the training" if settings.retrieval else "",
            index_fingerprint(index) if settings.retrieval else "",
            asdict(settings) | {"results": run.results()},
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        save_adapter(out, adapter, info, torch.float16)


def place_of(args: argparse.Namespace) -> Place:
    """Where it is trained; in bfloat16 where that is the faster."""
    device = choose_device(args.device)
    return Place(device, training.fast_dtype(device) == torch.bfloat16)


def on_place(index: PatchIndex, device: torch.device) -> PatchIndex:
    """The index, searched on a GPU."""
    if device.type == "cpu":
        return index
    return Places(device, torch.cuda.mem_get_info(device)[0])(index)


def adapter_path(args: argparse.Namespace, settings: TrainSettings) -> Path:
    return args.out if settings.retrieval else args.work / "control.safetensors"


def test_examples(
    checkpoint: Checkpoint, index: PatchIndex, scenes: Sequence[BenchScene], bench: Path, k: int
) -> Examples:
    """The benchmark's scenes with what the index has for them."""
    tokens = scene_tokens(checkpoint, scenes, bench)
    captions = [scene.truth.text for scene in scenes]
    digests = [hashlib.sha256(scene.pixels.tobytes()).digest() for scene in scenes]
    return make_examples(checkpoint, index, tokens, captions, digests, k)


def compare(args: argparse.Namespace, settings: TrainSettings) -> dict:
    """Teacher-forced bits per token that shows a thing: split -> base, control, FAiD."""
    checkpoint = load_checkpoint(args.model, torch.float32)
    scenes, index = read_scenes(args.bench), load_index(args.index)
    examples = test_examples(checkpoint, index, scenes, args.bench, settings.candidates)
    silent, alone = (
        replace(examples, codes=examples.codes[..., :0]),
        replace(settings, retrieval=False),
    )
    control = load_adapter(args.work / "control.safetensors", checkpoint, torch.float32)
    faid = load_adapter(args.out, checkpoint, torch.float32)
    place = Place(torch.device("cpu"))
    bits = {
        "base": score(checkpoint, None, silent, alone, place),
        "control": score(checkpoint, control, silent, alone, place),
        "faid": score(checkpoint, faid, examples, settings, place, index),
    }
    grid = checkpoint.model.grid
    marks = np.stack([scene.covers(grid.height, grid.width) for scene in scenes])
    marks &= bits["base"] > 0  # known tokens, where some are masked, cost nothing
    splits = np.array([scene.split for scene in scenes])
    return {
        split: {
            name: round(float(values[splits == split][marks[splits == split]].mean()), 4)
            for name, values in bits.items()
        }
        for split in dict.fromkeys(splits.tolist())
    }


def work(team: training.Team, args: argparse.Namespace, settings: TrainSettings) -> None:
    for retrieval in (True, False):
        mine = replace(settings, retrieval=retrieval)
        run = RunFolder(args.work / ("adapter" if retrieval else "control"))
        train(Team(team.rank, team.size), args, mine, run)


def chosen_settings(args: argparse.Namespace, own: TrainSettings) -> TrainSettings:
    """The model's own settings with what the command line changes."""
    named = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    if args.hops is not None:
        named["hops"] = tuple(map(int, args.hops.split(",")))
    settings = replace(own, seed=args.seed, **named)
    return replace(settings, steps=training.scaled(settings.steps, args.scale))


def main() -> None:
    parser = training.make_parser(__doc__, minutes=0)
    for name in ("model", "index", "usage", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--data-seed", type=int, default=0, help="of the scenes to learn from")
    parser.add_argument("--pictures", type=float, default=1.0, help="share of those to train on")
    parser.add_argument("--bench", type=Path, default=BENCH, help="scenes to test on")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda with one worker")
    for name in FLAGS:
        kind = type(getattr(SETTINGS, name))
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="(the model's own)")
    parser.add_argument("--hops", choices=[",".join(map(str, hops)) for hops in HOPS])
    args = training.parse_arguments(parser)
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(args.model, torch.float32)
    settings = chosen_settings(args, SETTINGS if checkpoint.model.order.raster else MASKED)
    with torch.no_grad():
        prepare(checkpoint, args, settings.candidates)
    training.run_team(args.workers, work, args, settings)
    with torch.no_grad():
        report = {"settings": asdict(settings), "bits": compare(args, settings)}
    (args.work / "adapter-report.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report["bits"], indent=1))


if __name__ == "__main__":
    main()
