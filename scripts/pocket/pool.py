"""Scenes drawn once and kept in files, for trainers that see each of them several times.

    python scripts/pocket/pool.py decoder --work WORK --scenes 200000 --workers 2

Drawing is the slow part where a GPU trains; all cores share it. A pool that is complete is left as
it is.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import training
from backgrounds import SIZE, STEP
from concepts import LEARNT
from data import EVENLY, Composer, make_composer
from patches import patch_contents
from torch import Tensor
from train_vq import LOOSE, MIX, make_mix

CHUNK = 256
"""Scenes that a process draws before it writes them."""
NAMES = ("vq", "vq_held_out", "decoder", "decoder_held_out")
"""What a picture tokenizer learns, and what the decoder learns; scenes of the same kinds that
nothing is trained on."""
CAPTIONS, PIXELS, CONTENTS = "captions.json", "pixels.npy", "contents.npy"


@dataclass(frozen=True)
class Pool:
    """Scenes with their captions.

    `pixels` [scenes, 3, SIZE, SIZE] uint8 and `contents` [scenes, patches] int64, what each patch
    shows as a number; files that are read where they are used.
    """

    captions: list[str]
    pixels: Tensor
    contents: Tensor

    def __len__(self) -> int:
        return len(self.captions)

    @classmethod
    def load(cls, folder: Path) -> Pool:
        captions = json.loads((folder / CAPTIONS).read_text(encoding="utf-8"))
        pixels, contents = (np.load(folder / n, mmap_mode="c") for n in (PIXELS, CONTENTS))
        return cls(captions, torch.from_numpy(pixels), torch.from_numpy(contents))

    def to(self, device: torch.device) -> Pool:
        """The same on a device that has room for it."""
        return Pool(self.captions, self.pixels.to(device), self.contents.to(device))


def composers(name: str, archives: Path) -> list[tuple[Composer, float]]:
    """Who draws the scenes of a pool, and how large a share of them.

    Args:
        name: One of `NAMES`.
    """
    if name.startswith("vq"):
        train = name == "vq"
        mix = make_mix(archives, "train" if train else "held_out", LOOSE if train else 0.0)
        return [(mix[part], share) for part, share in MIX.items()]
    if name == "decoder":
        return [(make_composer(archives, LEARNT, split="train", shares=EVENLY), 1.0)]
    return [(make_composer(archives, LEARNT, split="held_out"), 1.0)]


def draw_part(
    name: str, archives: Path, folder: Path, seed: tuple[int, ...], rows: slice
) -> list[str]:
    """Draw the scenes of some rows into the files of a pool; their captions."""
    drawers, shares = zip(*composers(name, archives), strict=True)
    rng = np.random.default_rng(seed)
    pixels, contents = (np.load(folder / n, mmap_mode="r+") for n in (PIXELS, CONTENTS))
    captions: list[str] = []
    for first in range(rows.start, rows.stop, CHUNK):
        count = min(CHUNK, rows.stop - first)
        scenes = [drawers[i].scene(rng) for i in rng.choice(len(drawers), count, p=shares)]
        drawn = np.stack([scene.pixels for scene in scenes])
        pixels[first : first + count] = drawn.transpose(0, 3, 1, 2)
        contents[first : first + count] = patch_contents(drawn).view(np.int64)
        captions += [scene.caption for scene in scenes]
    return captions


def draw_parts(parts: list[tuple]) -> list[list[str]]:
    """The captions of parts, each drawn by a process of its own if there are several."""
    if len(parts) == 1:
        return [draw_part(*parts[0])]
    with multiprocessing.get_context("spawn").Pool(len(parts)) as processes:
        return processes.starmap(draw_part, parts)


def draw_pool(name: str, work: Path, archives: Path, count: int, seed: int, workers: int) -> Path:
    """The folder WORK/pool-NAME with `count` scenes; a function of seed and workers."""
    folder = work / f"pool-{name}"
    if (folder / CAPTIONS).exists():
        return folder
    composers(name, archives)  # fetches the archives once
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {PIXELS: (count, 3, SIZE, SIZE), CONTENTS: (count, (SIZE // STEP) ** 2)}
    for file, dtype in ((PIXELS, np.uint8), (CONTENTS, np.int64)):
        np.lib.format.open_memmap(folder / file, "w+", dtype, shapes[file])
    edges = [count * i // workers for i in range(workers + 1)]
    parts = [
        (name, archives, folder, (seed, i), slice(a, b)) for i, (a, b) in enumerate(pairwise(edges))
    ]
    captions = [caption for part in draw_parts(parts) for caption in part]
    partial = folder / f"{CAPTIONS}.partial"
    partial.write_text(json.dumps(captions), encoding="utf-8")
    partial.replace(folder / CAPTIONS)
    return folder


def to_images(pixels: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1] of uint8 pixels [B, 3, H, W]."""
    return pixels.float() / 127.5 - 1


def main() -> None:
    parser: argparse.ArgumentParser = training.make_parser(__doc__ or "", minutes=0)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--scenes", type=int, required=True)
    args = training.parse_arguments(parser)
    count = training.scaled(args.scenes, args.scale, args.workers)
    draw_pool(args.name, args.work, args.archives, count, args.seed, args.workers)


if __name__ == "__main__":
    main()
