"""Scores as a table, pictures as contact sheets."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from ..images import save_png
from .measures import mean_and_spread
from .run import Pictures, Score

COLUMNS = 8
SHOWN = 48
LABEL = 24
MARK = {True: "#2a7", False: "#c33"}


def score_table(scores: Mapping[tuple[str, str], Score]) -> str:
    """A line for each kind and method: right pictures (mean ± spread over the seeds), things that
    are there, tokens equal to the nearest picture of the index."""
    lines = [f"{'kind':<14} {'method':<8} {'right':>13} {'objects':>13} {'copied':>7}"]
    for (kind, method), score in scores.items():
        copied = "" if score.copied is None else f"{score.copied:.2f}"
        right, objects = (_spread(values) for values in (score.right, score.objects))
        lines.append(f"{kind:<14} {method:<8} {right:>13} {objects:>13} {copied:>7}")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    mean, spread = mean_and_spread(values)
    return f"{mean:.3f}" + (f" ±{spread:.3f}" if len(values) > 1 else "")


def bits_table(bits: Mapping[tuple[str, str], tuple[float, float]]) -> str:
    """Teacher-forced bits per token, and how far below the model's own they are."""
    lines = [f"{'split':<8} {'method':<8} {'all tokens':>18} {'of things':>18}"]
    for (split, method), values in bits.items():
        plain = bits[split, "plain"]
        told = (f"{v:.3f} ({v / p - 1:+.1%})" for v, p in zip(values, plain, strict=True))
        lines.append(f"{split:<8} {method:<8} " + " ".join(f"{text:>18}" for text in told))
    return "\n".join(lines)


def share_table(title: str, columns: Mapping[str, Mapping[str, tuple[float, int]]]) -> str:
    """Shares of the same groups, a column for each name."""
    lines = [f"{title:<20} {'of':>4} " + " ".join(f"{name:>15}" for name in columns)]
    for group, (_, count) in next(iter(columns.values())).items():
        shares = " ".join(f"{column[group][0]:>15.3f}" for column in columns.values())
        lines.append(f"{group:<20} {count:>4} {shares}")
    return "\n".join(lines)


def write_sheet(pictures: Pictures, path: Path) -> None:
    """At most SHOWN pictures with their captions, framed green where they are right."""
    step = max(1, len(pictures.pixels) // SHOWN)
    chosen = range(0, len(pictures.pixels), step)[:SHOWN]
    height, width = pictures.pixels[0].shape[:2]
    cell, rows = (width + 8, height + LABEL + 8), -(-len(chosen) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell[0], rows * cell[1]), "white")
    pen = ImageDraw.Draw(sheet)
    for place, number in enumerate(chosen):
        x, y = place % COLUMNS * cell[0], place // COLUMNS * cell[1]
        right = pictures.verdicts[number].right
        pen.rectangle((x + 1, y + 1, x + width + 6, y + height + 6), fill=MARK[right])
        sheet.paste(Image.fromarray(pictures.pixels[number]), (x + 4, y + 4))
        text = pictures.captions[number]
        lines = textwrap.wrap(text, max(1, width // 6))[:2]
        pen.text((x + 4, y + height + 7), "\n".join(lines), fill="black")
    save_png(sheet, path, {})
