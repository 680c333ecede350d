"""What the interactive view shows: plain values, and one picture of all thumbnails.

Names and captions are the words of strangers: they stay text. Thumbnails are decoded and drawn
anew, so that no byte of a stranger's file reaches a browser.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..decode import Trace
from ..errors import printable
from ..index import Source
from ..index.thumbnails import open_thumbnail
from .sources import Report

CANDIDATES = 8
"""Of each position, those with the largest shares first."""
SIDE = 64
"""Pixels of a thumbnail's longer side."""
THUMBNAILS = 1024
"""Sources with a thumbnail."""
LONGEST = 300
"""Characters of a text."""
NONE = "#888"

Key = tuple[int, int]
"""(layer, number of the source)."""


@dataclass(frozen=True, eq=False)
class View:
    """What is handed to the browser."""

    data: dict[str, Any]
    """Lists, numbers and texts."""
    thumbnails: Image.Image
    """Of `data["sources"]`, in rows of `data["columns"]`, each of `data["cell"]` pixels."""


def make_view(trace: Trace, report: Report) -> View:
    """The facts of every position and its candidates."""
    candidates = [_candidates(trace, position) for position in range(trace.grid.size)]
    keys = _used(report, candidates)
    places = {key: i for i, key in enumerate(keys)}
    facts = {(row.layer, row.number): row for row in report.rows}
    shown = [trace.layers[j].source.sources[number] for j, number in keys]
    cell = _cell(trace)
    columns = math.ceil(math.sqrt(min(len(keys), THUMBNAILS))) or 1
    data = {
        "grid": [trace.grid.height, trace.grid.width],
        "component": trace.component.tolist(),
        "order": _order(trace.component).tolist(),
        "weight": _rounded(trace.weight),
        "owed": _rounded(trace.responsibility),
        "p_model": _rounded(trace.p_model),
        "layers": [layer.number for layer in trace.layers],
        "sources": [
            _source_facts(key, source, facts.get(key))
            for key, source in zip(keys, shown, strict=True)
        ],
        "candidates": [[[places[key], *rest] for key, *rest in listed] for listed in candidates],
        "cell": list(cell),
        "columns": columns,
        "thumbnails": min(len(keys), THUMBNAILS),
        "score": round(report.score, 4),
        "larger_than": report.larger_than,
    }
    return View(data, _atlas(shown[:THUMBNAILS], cell, columns))


def _rounded(values: np.ndarray) -> list[float]:
    return np.round(values, 4).tolist()


def _order(component: np.ndarray) -> np.ndarray:
    """At which step [N] each token appears; 0 of those that stood before the drawing."""
    drawn = component >= -1
    return np.where(drawn, np.cumsum(drawn), 0)


def _candidates(trace: Trace, position: int) -> list[tuple]:
    """(key, place, distance, share of the mixture, whether it proposes the drawn token) of the
    candidates with the largest shares."""
    found = []
    for j, layer in enumerate(trace.layers):
        hits, weight = layer.hits, layer.weight[position]
        for k in np.flatnonzero(hits.found()[position]).tolist():
            found.append(
                (
                    (j, int(hits.sources[position, k])),
                    int(hits.positions[position, k]),
                    round(float(hits.distances[position, k]), 4),
                    round(float(weight * layer.shares[position, k]), 4),
                    int(hits.codes[position, k] == trace.tokens[position]),
                )
            )
    found.sort(key=lambda one: (-one[3], one[2]))
    return found[:CANDIDATES]


def _used(report: Report, candidates: list[list[tuple]]) -> list[Key]:
    """The sources on view: those of the report first, then the other candidates."""
    named = {one[0] for listed in candidates for one in listed}
    ranked = [(row.layer, row.number) for row in report.rows]
    return [*(key for key in ranked if key in named), *sorted(named.difference(ranked))]


def _source_facts(key: Key, source: Source, row: Any) -> dict[str, Any]:
    """
    Args:
        row: Of the report; None for a source that it does not list.
    """
    name = " ".join(source.name.split())
    return {
        "layer": key[0],
        "name": _text(source.name),
        "caption": _text(source.caption),
        "licence": _text(source.licence),
        "origin": _text(source.origin),
        "exclude": f"={name}" if name else "",
        "share": round(row.share, 4) if row else 0.0,
        "region": row.largest if row else 0,
    }


def _text(text: str) -> str:
    return printable(" ".join(text.split())[: 2 * LONGEST], longest=LONGEST)


def _cell(trace: Trace) -> tuple[int, int]:
    """(width, height) of a thumbnail."""
    longer = max(trace.grid.width, trace.grid.height)
    return max(1, SIDE * trace.grid.width // longer), max(1, SIDE * trace.grid.height // longer)


def _atlas(sources: list[Source], cell: tuple[int, int], columns: int) -> Image.Image:
    rows = math.ceil(len(sources) / columns) or 1
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), NONE)
    for i, source in enumerate(sources):
        try:
            picture = open_thumbnail(source.thumbnail).resize(cell)
        except ValueError:
            continue
        sheet.paste(picture, (i % columns * cell[0], i // columns * cell[1]))
    return sheet
