"""A line chart as SVG text, small enough to need no package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 60, 150, 20, 90
COLORS = ("#1f6f8b", "#c0392b", "#7d8f29", "#8e44ad", "#d68910", "#444444")
TICKS = 5
At = Callable[[int, float], tuple[float, float]]
"""Pixels of a value at a label."""


def line_chart(
    labels: Sequence[str], lines: Mapping[str, Sequence[float | None]], title: str
) -> str:
    """An SVG picture of values over labels.

    Args:
        lines: Values at the labels, by name; None leaves a gap.
    """
    known = [value for line in lines.values() for value in line if value is not None]
    low, high = min(0.0, *known, 0.0), max([*known, 1e-9])
    across = (WIDTH - LEFT - RIGHT) / max(1, len(labels) - 1)

    def at(place: int, value: float) -> tuple[float, float]:
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low))
        return round(LEFT + place * across, 1), round(y, 1)

    parts = [*_axes(low, high, at), *_labels(labels, at)]
    for number, (name, values) in enumerate(lines.items()):
        color = COLORS[number % len(COLORS)]
        parts += _line(values, color, at)
        y = TOP + 14 + 18 * number
        parts.append(_text(WIDTH - RIGHT + 14, y, name, f'fill="{color}"'))
    parts.append(_text(LEFT, HEIGHT - 6, title, 'fill="#444"'))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">'
    )
    ground = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    return "\n".join((head, ground, *parts, "</svg>")) + "\n"


def _axes(low: float, high: float, at: At) -> list[str]:
    parts = []
    for tick in range(TICKS + 1):
        value = low + (high - low) * tick / TICKS
        x, y = at(0, value)
        parts.append(f'<path d="M{x} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(x - 8, y + 4, f"{value:.3g}", 'text-anchor="end"'))
    return parts


def _labels(labels: Sequence[str], at: At) -> list[str]:
    parts = []
    for place, label in enumerate(labels):
        x, _ = at(place, 0)
        y = HEIGHT - BOTTOM + 16
        turned = f'transform="rotate(-30 {x} {y})" text-anchor="end"'
        parts.append(_text(x, y, label, turned))
    return parts


def _line(values: Sequence[float | None], color: str, at: At) -> list[str]:
    points = [at(place, value) for place, value in enumerate(values) if value is not None]
    path = " ".join(f"{x},{y}" for x, y in points)
    dots = [f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in points]
    return [f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>', *dots]


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" {more}>{escape(text)}</text>'
