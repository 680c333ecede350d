"""Drawn pictures with their scores, and contact sheets of them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..checkpoints import Checkpoint
from ..images import save_png

COLUMNS = 8
SHOWN = 48
LABEL = 24
"""Pixels below a picture for its caption."""
MARK = {True: "#2a7", False: "#c33"}


@dataclass
class Pictures:
    """What a method drew, picture by picture."""

    captions: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    """[N]."""
    pixels: list[np.ndarray] = field(default_factory=list)
    """[H, W, 3] uint8."""
    scores: list[dict[str, float]] = field(default_factory=list)
    """By name; the pictures of one method have the same names."""

    @staticmethod
    def joined(parts: Iterable[Pictures]) -> Pictures:
        """All of them, in order."""
        every = Pictures()
        for part in parts:
            every.extend(part)
        return every

    def extend(self, other: Pictures) -> None:
        for name in (f.name for f in fields(self)):
            getattr(self, name).extend(getattr(other, name))

    def by_seed(self, name: str) -> tuple[float, ...]:
        """Mean of a score over the tasks, one for each seed, in ascending order."""
        seeds, values = np.array(self.seeds), np.array([scores[name] for scores in self.scores])
        return tuple(float(values[seeds == seed].mean()) for seed in np.unique(seeds))

    def by_task(self, name: str) -> np.ndarray:
        """A score [tasks, seeds]; every task has the pictures of all seeds, one after the other."""
        values = np.array([scores[name] for scores in self.scores])
        return values.reshape(-1, len(set(self.seeds)))

    def mean(self, name: str) -> float | None:
        """Mean of a score; None where the pictures do not have it."""
        values = [scores[name] for scores in self.scores if name in scores]
        return float(np.mean(values)) if values else None


def decode_tokens(checkpoint: Checkpoint, tokens: np.ndarray) -> np.ndarray:
    """Pictures [B, H, W, 3] uint8 of tokens [B, N]."""
    grid = checkpoint.model.grid
    return checkpoint.decode(torch.from_numpy(tokens).view(-1, grid.height, grid.width)).numpy()


def write_sheet(pictures: Pictures, path: Path, mark: str) -> None:
    """At most SHOWN pictures with their captions, framed by whether their score `mark` is 1."""
    step = max(1, len(pictures.pixels) // SHOWN)
    chosen = range(0, len(pictures.pixels), step)[:SHOWN]
    height, width = pictures.pixels[0].shape[:2]
    cell, rows = (width + 8, height + LABEL + 8), -(-len(chosen) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell[0], rows * cell[1]), "white")
    pen = ImageDraw.Draw(sheet)
    for place, number in enumerate(chosen):
        x, y = place % COLUMNS * cell[0], place // COLUMNS * cell[1]
        color = MARK[pictures.scores[number][mark] == 1]
        pen.rectangle((x + 1, y + 1, x + width + 6, y + height + 6), fill=color)
        sheet.paste(Image.fromarray(pictures.pixels[number]), (x + 4, y + 4))
        lines = textwrap.wrap(pictures.captions[number], max(1, width // 6))[:2]
        pen.text((x + 4, y + height + 7), "\n".join(lines), fill="black")
    save_png(sheet, path, {})
