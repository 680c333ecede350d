"""Scores as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from arrag_engine.evaluate.benchmark import Part
from arrag_engine.evaluate.measures import mean_and_spread
from arrag_engine.evaluate.pictures import Pictures


def score_table(parts: Mapping[Part, Pictures]) -> str:
    """A line for each kind and method: right pictures (mean ± spread over the seeds), things that
    are there, tokens equal to the nearest picture of the index."""
    lines = [f"{'kind':<14} {'method':<8} {'right':>13} {'objects':>13} {'copied':>7}"]
    for (kind, method), pictures in parts.items():
        share = pictures.mean("copied")
        copied = "" if share is None else f"{share:.2f}"
        right, objects = (_spread(pictures.by_seed(name)) for name in ("right", "objects"))
        lines.append(f"{kind:<14} {method:<8} {right:>13} {objects:>13} {copied:>7}")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    mean, spread = mean_and_spread(values)
    return f"{mean:.3f}" + (f" ±{spread:.3f}" if len(values) > 1 else "")


def bits_table(bits: Mapping[Part, tuple[float, float]]) -> str:
    """Bits per token, and how far below the model's own they are."""
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
