"""The loss curve as a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ..files import atomic_write

SIZE = (900, 500)
MARGIN = (70, 30, 20, 45)
"""Pixels left, top, right and bottom of the plot."""
LINES = (("bits", "#9ecae1", "training"), ("held_out_bits", "#d94801", "held out"))
MAX_TICKS = 6


def draw_curve(log: list[dict[str, Any]], path: Path) -> None:
    """Plot training and held-out loss (bits a token) over the steps and write a PNG.

    Raises:
        InputError: The file cannot be written.
    """
    points = {
        key: [(line["step"], line[key]) for line in log if key in line] for key, _, _ in LINES
    }
    every = [point for line in points.values() for point in line]
    if not every:
        return
    image = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(image)
    steps, values = zip(*every, strict=True)
    x_axis = (0.0, float(max(*steps, 1)))
    y_axis = _padded(min(values), max(values))
    _draw_axes(pen, x_axis, y_axis)
    for number, (key, colour, label) in enumerate(LINES):
        line = [_place(x, y, x_axis, y_axis) for x, y in points[key]]
        pen.line(line, fill=colour, width=2)
        for x, y in line if len(line) < 40 else []:
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        pen.text((SIZE[0] - 130, MARGIN[1] + 16 * number), label, fill=colour)
    pen.text((8, 8), "bits a token", fill="black")
    pen.text((SIZE[0] // 2, SIZE[1] - 18), "step", fill="black")
    with atomic_write(path) as temporary:
        image.save(temporary, "PNG")


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def _place(
    x: float, y: float, x_axis: tuple[float, float], y_axis: tuple[float, float]
) -> tuple[float, float]:
    left, top, right, bottom = MARGIN
    across = (x - x_axis[0]) / (x_axis[1] - x_axis[0])
    up = (y - y_axis[0]) / (y_axis[1] - y_axis[0])
    height = SIZE[1] - top - bottom
    return left + across * (SIZE[0] - left - right), top + (1 - up) * height


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within an axis."""
    step = 10 ** math.floor(math.log10((high - low) / MAX_TICKS))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= MAX_TICKS)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _draw_axes(
    pen: ImageDraw.ImageDraw, x_axis: tuple[float, float], y_axis: tuple[float, float]
) -> None:
    for x in ticks(*x_axis):
        left, bottom = _place(x, y_axis[0], x_axis, y_axis)
        pen.line((left, MARGIN[1], left, bottom), fill="#eee")
        pen.text((left - 8, bottom + 6), f"{x:g}", fill="black")
    for y in ticks(*y_axis):
        left, up = _place(x_axis[0], y, x_axis, y_axis)
        pen.line((left, up, SIZE[0] - MARGIN[2], up), fill="#eee")
        pen.text((left - 45, up - 6), f"{y:g}", fill="black")
