"""Real scenes that no model was trained on, with the truth about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from arrag_engine.errors import InputError
from arrag_engine.evaluate.benchmark import evenly

from .prompts import BenchPrompt, from_record, to_record

SPLITS = ("seen", "unseen", "style")
"""Things the decoder has learnt; single things it never saw; things in a style it never saw."""
COLUMNS = 16


@dataclass(frozen=True)
class BenchScene:
    """A composed scene."""

    pixels: np.ndarray = field(repr=False, compare=False)
    """[H, W, 3] uint8."""
    split: str
    truth: BenchPrompt
    """Its caption, and what is on it: the colour of a thing in its own colours is not named."""
    boxes: tuple[tuple[int, int, int, int], ...]
    """Left, top, right, bottom of the things in pixels."""
    number: int = 0
    """Its place in the file."""

    def covers(self, height: int, width: int) -> np.ndarray:
        """Which tokens [height * width] show some of a thing."""
        rows, columns = (
            side / count for side, count in zip(self.pixels.shape, (height, width), strict=False)
        )
        covered = np.zeros((height, width), bool)
        for left, top, right, bottom in self.boxes:
            down = slice(int(top // rows), int(-(-bottom // rows)))
            covered[down, int(left // columns) : int(-(-right // columns))] = True
        return covered.ravel()


def write_scenes(scenes: Sequence[BenchScene], folder: Path) -> None:
    """One picture with all scenes (`scenes.webp`, lossless) and a line of truth for each."""
    height, width = scenes[0].pixels.shape[:2]
    rows = -(-len(scenes) // COLUMNS)
    sheet = np.zeros((rows * height, COLUMNS * width, 3), np.uint8)
    lines = []
    for number, scene in enumerate(scenes):
        top, left = number // COLUMNS * height, number % COLUMNS * width
        sheet[top : top + height, left : left + width] = scene.pixels
        record = {"split": scene.split, "boxes": scene.boxes, **to_record(scene.truth)}
        lines.append(json.dumps(record))
    Image.fromarray(sheet).save(folder / "scenes.webp", lossless=True, quality=100, method=6)
    (folder / "scenes.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_scenes(folder: Path) -> list[BenchScene]:
    """The scenes that `write_scenes` wrote.

    Raises:
        InputError: The files are missing or damaged.
    """
    try:
        with Image.open(folder / "scenes.webp", formats=("WEBP",)) as image:
            sheet = np.asarray(image.convert("RGB"))
        lines = (folder / "scenes.jsonl").read_text(encoding="utf-8").splitlines()
        side = sheet.shape[1] // COLUMNS
        scenes = []
        for number, line in enumerate(lines):
            record = json.loads(line)
            top, left = number // COLUMNS * side, number % COLUMNS * side
            boxes = tuple((int(a), int(b), int(c), int(d)) for a, b, c, d in record["boxes"])
            pixels = sheet[top : top + side, left : left + side]
            scenes.append(BenchScene(pixels, record["split"], from_record(record), boxes, number))
    except (OSError, UnidentifiedImageError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"cannot read the scenes in {folder} ({error}); make them with "
            "scripts/pocket/make_bench.py"
        ) from error
    return scenes


def limited(scenes: Sequence[BenchScene], limit: int | None) -> list[BenchScene]:
    """At most `limit` of each split, evenly taken."""
    splits = dict.fromkeys(scene.split for scene in scenes)
    return [s for split in splits for s in evenly([s for s in scenes if s.split == split], limit)]
