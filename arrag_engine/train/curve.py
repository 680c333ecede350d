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
GAP = 30
"""Pixels between two plots."""
Line = tuple[str, str, str]
"""Key in the log, colour, label."""
PLOTS: tuple[tuple[Line, ...], ...] = (
    (("bits", "#9ecae1", "training"), ("held_out_bits", "#d94801", "held out")),
    (("own_bits", "#238b45", "drawn by the model itself"),),
)
"""The losses of one plot share an axis: the model's own pictures cost far less than others."""
MAX_TICKS = 6
Axis = tuple[float, float]
Box = tuple[float, float, float, float]
"""Pixels left, top, right, bottom."""


def draw_curve(log: list[dict[str, Any]], path: Path) -> None:
    """Plot the losses (bits a token) over the steps and write a PNG.

    Raises:
        InputError: The file cannot be written.
    """
    plots = [lines for lines in PLOTS if any(key in entry for key, _, _ in lines for entry in log)]
    if not plots:
        return
    image = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(image)
    x_axis = (0.0, float(max(1, *(entry["step"] for entry in log))))
    left, top, right, bottom = MARGIN
    height = (SIZE[1] - top - bottom - GAP * (len(plots) - 1)) / len(plots)
    for number, lines in enumerate(plots):
        upper = top + number * (height + GAP)
        _draw_plot(pen, log, lines, x_axis, (left, upper, SIZE[0] - right, upper + height))
    pen.text((8, 8), "bits a token", fill="black")
    pen.text((SIZE[0] // 2, SIZE[1] - 18), "step", fill="black")
    with atomic_write(path) as temporary:
        image.save(temporary, "PNG")


def _draw_plot(
    pen: ImageDraw.ImageDraw,
    log: list[dict[str, Any]],
    lines: tuple[Line, ...],
    x_axis: Axis,
    box: Box,
) -> None:
    values = [entry[key] for key, _, _ in lines for entry in log if key in entry]
    y_axis = _padded(min(values), max(values))
    _draw_axes(pen, x_axis, y_axis, box)
    for number, (key, colour, label) in enumerate(lines):
        points = [(entry["step"], entry[key]) for entry in log if key in entry]
        line = [_place(x, y, x_axis, y_axis, box) for x, y in points]
        pen.line(line, fill=colour, width=2)
        for x, y in line if len(line) < 40 else []:
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        pen.text((box[2] - 8, box[1] + 16 * number), label, fill=colour, anchor="ra")


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def _place(x: float, y: float, x_axis: Axis, y_axis: Axis, box: Box) -> tuple[float, float]:
    left, top, right, bottom = box
    across = (x - x_axis[0]) / (x_axis[1] - x_axis[0])
    up = (y - y_axis[0]) / (y_axis[1] - y_axis[0])
    return left + across * (right - left), top + (1 - up) * (bottom - top)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within an axis."""
    step = 10 ** math.floor(math.log10((high - low) / MAX_TICKS))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= MAX_TICKS)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _draw_axes(pen: ImageDraw.ImageDraw, x_axis: Axis, y_axis: Axis, box: Box) -> None:
    for x in ticks(*x_axis):
        left, bottom = _place(x, y_axis[0], x_axis, y_axis, box)
        pen.line((left, box[1], left, bottom), fill="#eee")
        pen.text((left - 8, bottom + 6), f"{x:g}", fill="black")
    for y in ticks(*y_axis):
        left, up = _place(x_axis[0], y, x_axis, y_axis, box)
        pen.line((left, up, box[2], up), fill="#eee")
        pen.text((left - 45, up - 6), f"{y:g}", fill="black")
