"""Fit the weight "auto" of the pocket model's index to what it is for: unseen things and style.

    python scripts/pocket/calibrate_index.py --model MODEL --index INDEX --usage WORK/usage.npz \
        --archives NPM --out INDEX

As `python -m arrag_engine calibrate`, but with the codes that the decoder has learnt for patches
that it saw: its encoder chooses among several. What the model knows must not suffer.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from captions import KINDS
from concepts import LEARNT, UNSEEN
from data import Composer, Scene, make_composer
from patches import patch_contents
from tokens import Usage
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine.calibrate import Observations, fit, observe
from arrag_engine.checkpoints import Checkpoint, load_checkpoint
from arrag_engine.index import PatchIndex, load_index, save_index
from arrag_engine.retrieval import Retriever, make_retriever
from arrag_engine.settings import HARM, RetrievalOptions
from scripts.pocket.bench.tasks import encode_pixels

SEED = 30_000_000
OPTIONS = RetrievalOptions(temperature=0.2, neighbours=16)


def held_out_scenes(archives: Path, count: int) -> dict[str, list[Scene]]:
    """What the model knows, and what only the index has: scenes of each."""
    rng = np.random.default_rng(SEED)
    learnt = make_composer(archives, LEARNT, split="held_out")
    style = make_composer(archives, LEARNT, "google", "train")  # the index has held-out ones
    unseen = [Composer(learnt.sprites, (name,), "train") for name in UNSEEN]
    return {
        "known": [learnt.scene(rng, KINDS[i % len(KINDS)]) for i in range(count)],
        "new": [unseen[i % len(unseen)].scene(rng, "single_object") for i in range(count // 2)]
        + [style.scene(rng, KINDS[i % len(KINDS)]) for i in range(count // 2)],
    }


def observe_scenes(
    checkpoint: Checkpoint,
    index: PatchIndex,
    retriever: Retriever,
    scenes: list[Scene],
    usage: Usage,
    options: RetrievalOptions,
) -> Observations:
    """What retrieval finds for scenes that the index lacks."""
    pixels = np.stack([scene.pixels for scene in scenes])
    tokens = usage.settle(patch_contents(pixels), encode_pixels(checkpoint, pixels))
    own = {bytes(grid) for grid in np.asarray(index.tokens, np.uint16)}
    pairs = [
        (grid, scene.caption)
        for grid, scene in zip(tokens, scenes, strict=True)
        if bytes(grid.astype(np.uint16)) not in own
    ]
    with tqdm(total=len(pairs), desc="observe") as bar:
        encoder = checkpoint.prompt_encoder
        return observe(checkpoint.model, encoder, retriever, pairs, options, bar.update)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "index", "usage", "archives", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=360, help="scenes of either sort to fit on")
    parser.add_argument("--harm", type=float, default=HARM)
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.model, torch.float32)
    model, index, usage = checkpoint.model, load_index(args.index), Usage.load(args.usage)
    retriever = make_retriever(index, model.config.grid, model.vq.codebook(model.device))
    seen = {
        name: observe_scenes(checkpoint, index, retriever, scenes, usage, OPTIONS)
        for name, scenes in held_out_scenes(args.archives, args.scenes).items()
    }
    found = fit(seen["new"], OPTIONS, known=seen["known"], harm=args.harm)
    save_index(replace(index, calibration=found.calibration), args.out)
    print(found)


if __name__ == "__main__":
    main()
