"""Fit the weight "auto" of the pocket model's index on held-out scenes of what the model knows.

    python scripts/pocket/calibrate_index.py --model MODEL --index INDEX --usage WORK/usage.npz \
        --archives NPM --out INDEX

As `python -m arrag_engine calibrate`, but with the codes that the decoder has learnt for patches
that it saw: its encoder chooses among several.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from captions import KINDS
from concepts import LEARNT
from data import make_composer
from patches import patch_contents
from tokens import Usage
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine.bench.tasks import encode_pixels
from arrag_engine.calibrate import fit, observe
from arrag_engine.checkpoint import load_checkpoint
from arrag_engine.daid import RetrievalOptions
from arrag_engine.index import load_index, save_index
from arrag_engine.retriever import Retriever

SEED = 30_000_000
OPTIONS = RetrievalOptions(temperature=0.2, neighbours=16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "index", "usage", "archives", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=180, help="held-out scenes to fit on")
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.model, torch.float32)
    model, index, options = checkpoint.model, load_index(args.index), OPTIONS
    rng = np.random.default_rng(SEED)
    composer = make_composer(args.archives, LEARNT, split="held_out")
    scenes = [composer.scene(rng, KINDS[i % len(KINDS)]) for i in range(args.scenes)]
    pixels = np.stack([scene.pixels for scene in scenes])
    tokens = encode_pixels(checkpoint, pixels)
    tokens = Usage.load(args.usage).settle(patch_contents(pixels), tokens)
    retriever = Retriever(index, model.config.grid, model.vq.codebook(model.device))
    own = {bytes(grid) for grid in np.asarray(index.tokens, np.uint16)}
    pairs = [
        (grid, scene.caption)
        for grid, scene in zip(tokens, scenes, strict=True)
        if bytes(grid.astype(np.uint16)) not in own
    ]
    bar = tqdm(total=len(pairs), desc="observe")
    found = fit(
        observe(model, checkpoint.prompt_encoder, retriever, pairs, options, bar.update), options
    )
    save_index(replace(index, calibration=found.calibration), args.out)
    print(found)


if __name__ == "__main__":
    main()
