"""Things of half a picture: an index of small things that stand on one side, true scenes of two of
them, and what the detector finds on each side.

    python -m scripts.pocket.halves OUT.safetensors     # makes the shipped index pocket-small

The shipped index has its unseen things alone, in the middle and 72 pixels large, of which half a
picture holds a part. Here they are scaled to the 48 pixels that things of two have in `data.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import arrag_engine as arrag
from arrag_engine import build_index
from arrag_engine.checkpoints import Checkpoint
from arrag_engine.evaluate.pictures import decode_tokens
from arrag_engine.index import KeySpec, PatchIndex, load_index
from arrag_engine.index.file import save_index
from scripts.pocket.bench.scenes import BenchScene
from scripts.pocket.bench.scorer import Detection

SIDES = {"left": 0.25, "right": 0.75}
"""Side -> where the middle of a thing lies, as a share of the width."""
SMALLER = 2 / 3
"""A thing among two is 48 pixels large, one alone 72."""
STEP = 8
"""Pixels of the raster on which things stand."""
PLAIN = 30
"""Largest difference of a border pixel from a plain background, of 255."""
FAR = 24
"""Least difference of a thing's pixels from the background."""

KEYS = KeySpec("causal-24", "zero", "codebook", 8.0)
"""Best for regions: see docs/measurements.md."""

Box = tuple[int, int, int, int]


def background_of(pixels: np.ndarray) -> np.ndarray | None:
    """Colour [3] of the plain background of a picture [H, W, 3]; None if it has none."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).astype(float)
    colour = np.median(border, axis=0)
    return colour if np.abs(border - colour).max() <= PLAIN else None


def box_of(pixels: np.ndarray, background: np.ndarray) -> Box | None:
    """Left, top, right, bottom of what stands out from a plain background."""
    far = np.abs(pixels - background).max(axis=2) > FAR
    if not far.any():
        return None
    rows, columns = np.flatnonzero(far.any(axis=1)), np.flatnonzero(far.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def put(canvas: Image.Image, pixels: np.ndarray, box: Box, side: str) -> None:
    """Put the thing in a box of a picture [H, W, 3], made smaller, on a side of another one."""
    thing = Image.fromarray(pixels).crop(box)
    width, height = (max(1, round(length * SMALLER)) for length in thing.size)
    left = _on_raster(SIDES[side] * canvas.width - width / 2)
    top = _on_raster(canvas.height / 2 - height / 2)
    small = thing.resize((width, height), Image.Resampling.LANCZOS)
    canvas.paste(small, (left, top))


def _on_raster(pixels: float) -> int:
    return round(pixels / STEP) * STEP


def half_picture(pixels: np.ndarray, side: str) -> Image.Image | None:
    """A picture [H, W, 3] of one thing on a plain background, the thing small and on a side."""
    background = background_of(pixels)
    box = None if background is None else box_of(pixels, background)
    if background is None or box is None:
        return None
    canvas = Image.new("RGB", pixels.shape[1::-1], _colour(background))
    put(canvas, pixels, box, side)
    return canvas


def _colour(background: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in background.round())


def make_halves(
    checkpoint: Checkpoint, index: PatchIndex, pictures: Sequence[int], path: Path
) -> PatchIndex:
    """An index of the pictures that have a plain background, each with its thing on the left
    (source `left/…`) and on the right (`right/…`)."""
    if not path.exists():
        images, captions = [], []
        for side in SIDES:
            for number in pictures:
                pixels = decode_tokens(checkpoint, index.tokens[[number]].astype(np.int64))[0]
                half = half_picture(pixels, side)
                if half is not None:
                    images.append(half)
                    captions.append(index.sources[number].caption)
        build_index(checkpoint, images, path, captions)
    return _named_by_side(load_index(path))


def _named_by_side(index: PatchIndex) -> PatchIndex:
    """The index whose first half of pictures is on the left, the sources named so."""
    half = len(index.sources) // 2
    sources = [
        replace(source, name=f"{'left' if number < half else 'right'}/{source.name}")
        for number, source in enumerate(index.sources)
    ]
    return replace(index, sources=type(index.sources).from_sources(sources))


def true_halves(scenes: Sequence[BenchScene]) -> list[tuple[np.ndarray, str, str]]:
    """(picture, thing on the left, thing on the right) of scenes of one thing each, two by two,
    every half on its own background."""
    made = []
    for a, b in zip(scenes, [*scenes[1:], *scenes[:1]], strict=True):
        halves = [_true_half(a, "left"), _true_half(b, "right")]
        middle = halves[0].shape[1] // 2
        pixels = np.concatenate([halves[0][:, :middle], halves[1][:, middle:]], axis=1)
        made.append((pixels, a.truth.include[0].name, b.truth.include[0].name))
    return made


def _true_half(scene: BenchScene, side: str) -> np.ndarray:
    canvas = Image.new("RGB", scene.pixels.shape[1::-1], _colour(scene.pixels[0, 0]))
    put(canvas, scene.pixels, scene.boxes[0], side)
    return np.asarray(canvas)


def on_sides(found: Sequence[Detection], left: str, right: str) -> tuple[bool, bool]:
    """Whether each thing is found with its middle on its own side of the picture."""
    return (
        any(one.name == left and one.x < 0.5 for one in found),
        any(one.name == right and one.x >= 0.5 for one in found),
    )


def side_mask(side: str, pixels: int) -> np.ndarray:
    """The region [pixels, pixels] of a side."""
    mask = np.zeros((pixels, pixels), np.float32)
    half = pixels // 2
    mask[:, :half] = side == "left"
    mask[:, half:] = side == "right"
    return mask


def ship(out: Path) -> None:
    """Write the index of small things, each source with the licence and the origin of the picture
    that it was made of."""
    checkpoint, index = arrag.load_model("pocket", "fp32", "cpu"), arrag.load_index("pocket")
    images, sources = [], []
    for side in SIDES:
        for number in index.sources.any_of(["unseen/*"]).tolist():
            pixels = decode_tokens(checkpoint, index.tokens[[number]].astype(np.int64))[0]
            half = half_picture(pixels, side)
            if half is not None:
                images.append(half)
                sources.append((side, index.sources[number]))
    captions = [source.caption for _, source in sources]
    made = build_index(checkpoint, images, out, captions, KEYS)
    named = [
        replace(own, name=f"{side}/{source.name}", licence=source.licence, origin=source.origin)
        for own, (side, source) in zip(made.sources, sources, strict=True)
    ]
    save_index(replace(made, sources=type(made.sources).from_sources(named)), out)


if __name__ == "__main__":
    ship(Path(sys.argv[1]))
