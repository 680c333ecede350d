"""Scores as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from arrag_engine.evaluate.benchmark import Part
from arrag_engine.evaluate.measures import SURE, bootstrap_interval
from arrag_engine.evaluate.pictures import Pictures

from .bits import Bits


def score_table(parts: Mapping[Part, Pictures]) -> str:
    """A line for each kind and method: right pictures and things that are there (mean, and its
    interval over prompts and seeds), tokens equal to the nearest picture of the index."""
    lines = [f"{'kind':<14} {'method':<9} {'right':>21} {'objects':>21} {'copied':>7}"]
    for (kind, method), pictures in parts.items():
        share = pictures.mean("copied")
        copied = "" if share is None else f"{share:.2f}"
        right, objects = (_with_interval(pictures, name) for name in ("right", "objects"))
        lines.append(f"{kind:<14} {method:<9} {right:>21} {objects:>21} {copied:>7}".rstrip())
    lines.append(f"In brackets: {SURE:.0%} interval over prompts and seeds (bootstrap).")
    return "\n".join(lines)


def _with_interval(pictures: Pictures, name: str) -> str:
    values = pictures.by_task(name)
    low, high = bootstrap_interval(values)
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def caption_note(blank: Sequence[Part]) -> str:
    """Which parts were drawn without a caption; "" if none."""
    if not blank:
        return ""
    kinds, methods = (", ".join(dict.fromkeys(names)) for names in zip(*blank, strict=True))
    return (
        f"Drawn without a caption: {kinds} (by {methods}). The model gets an empty prompt; the "
        "name only chooses\npictures of the index."
    )


def bits_table(bits: Mapping[Part, Sequence[Bits]]) -> str:
    """Bits per token with their interval over scenes, and how far below the model's they are."""
    lines = [f"{'split':<8} {'method':<9} {'all tokens':>30} {'of things':>18}"]
    for (split, method), scenes in bits.items():
        plain = bits[split, "plain"]
        pairs = zip(_means(scenes), _means(plain), strict=True)
        told = [f"{value:.3f} ({value / own - 1:+.1%})" for value, own in pairs]
        low, high = bootstrap_interval(np.array([[scene.every] for scene in scenes]))
        told[0] += f" [{low:.2f}, {high:.2f}]"
        lines.append(f"{split:<8} {method:<9} {told[0]:>30} {told[1]:>18}")
    return "\n".join(lines)


def _means(scenes: Sequence[Bits]) -> tuple[float, float]:
    """(of all tokens, of those that show a thing)."""
    counts = [scene.thing_tokens for scene in scenes]
    things = np.average([scene.things for scene in scenes], weights=counts)
    return float(np.mean([scene.every for scene in scenes])), float(things)


def share_table(title: str, columns: Mapping[str, Mapping[str, tuple[float, int]]]) -> str:
    """Shares of the same groups, a column for each name."""
    lines = [f"{title:<20} {'of':>4} " + " ".join(f"{name:>15}" for name in columns)]
    for group, (_, count) in next(iter(columns.values())).items():
        shares = " ".join(f"{column[group][0]:>15.3f}" for column in columns.values())
        lines.append(f"{group:<20} {count:>4} {shares}")
    return "\n".join(lines)
