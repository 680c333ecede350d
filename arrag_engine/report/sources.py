"""The sources of a picture: shares, copied regions, the over-copying score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..bounds import COPY_LIMIT
from ..decode import Trace, TraceLayer
from ..errors import printable
from ..grid import Grid
from ..index import Source
from ..index.thumbnails import open_thumbnail
from ..retrieval import CopiedRegion, copied_regions, over_copying_score

CELL = 4
"""Pixels of a token's side when pictures are compared."""
LISTED = 40
"""Sources in the text."""
LONGEST = 60
"""Characters of a name in the text."""


@dataclass(frozen=True, eq=False)
class SourceRow:
    """A picture of an index that this picture owes something to, or has a copied region of."""

    layer: int
    """Place of the layer in the trace."""
    asked: int
    """Number of the layer among those asked for; one with nothing to retrieve is not traced."""
    number: int
    """Of the source in its index."""
    source: Source
    share: float
    """Of the picture that is owed to it."""
    largest: int
    """Tokens of its largest copied region; 0 if it has none that counts for the score."""
    distance: float | None
    """Between the pixels of its regions and the picture's: root mean square, black to white is 1;
    None where it has no region or no thumbnail."""


@dataclass(frozen=True, eq=False)
class Report:
    """What a picture owes to its sources."""

    rows: tuple[SourceRow, ...]
    """The largest share first."""
    larger_than: int
    score: float
    """The over-copying score: the share of the picture in copied regions of more than so many
    tokens."""
    distance: float | None
    """Of the pixels in these regions, as of a row; of the nearest source where several overlap."""
    retrieved: float
    """Share of the picture that is owed to retrieval."""

    def text(self) -> str:
        """A table for people. Names are made printable."""
        away = "" if self.distance is None else f", pixel distance {self.distance:.2f}"
        lines = [
            f"{self.retrieved:.1%} of the picture is owed to retrieval, "
            f"{1 - self.retrieved:.1%} to the model.",
            f"Over-copying score: {self.score:.3f} (copied regions of more than "
            f"{self.larger_than} tokens{away}).",
        ]
        if not self.rows:
            return "\n".join([*lines, "Nothing is owed to a source."])
        lines += ["", " share  region  distance  layer  licence: source"]
        lines += [_line(row, self.larger_than) for row in self.rows[:LISTED]]
        more = len(self.rows) - LISTED
        return "\n".join([*lines, *([f"and {more} more sources"] if more > 0 else [])])


def _line(row: SourceRow, larger_than: int) -> str:
    away = "-" if row.distance is None else f"{row.distance:.2f}"
    licence, name = one_line(row.source.licence) or "unknown", one_line(row.source.name)
    region = str(row.largest or f"<={larger_than}")
    return f"{row.share:6.1%}  {region:>6}  {away:>8}  {row.asked + 1:>5}  {licence}: {name}"


def one_line(text: str, longest: int = LONGEST) -> str:
    """A text of strangers as one printable line."""
    line = printable(" ".join(text.split())[: 2 * longest])
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def make_report(trace: Trace, larger_than: int, picture: Image.Image) -> Report:
    """What a picture owes to the sources among its candidates.

    Args:
        larger_than: Copied regions of more tokens count for the score.
        picture: Of the trace, of any size.

    Raises:
        InputError: `larger_than` is out of range.
    """
    COPY_LIMIT.check(larger_than, "larger_than")
    mine = cells(picture, trace.grid)
    rows: list[SourceRow] = []
    large: list[CopiedRegion] = []
    nearest = np.full(trace.grid.size, np.inf)
    for j, layer in enumerate(trace.layers):
        regions = _regions(trace, layer, larger_than)
        large += regions
        rows += _rows(trace, j, regions, mine, nearest)
    known = nearest[np.isfinite(nearest)]
    return Report(
        tuple(sorted(rows, key=lambda row: (-row.share, -row.largest))),
        larger_than,
        over_copying_score(trace.grid, large),
        float(np.sqrt(known.mean())) if len(known) else None,
        float(trace.responsibility.mean()),
    )


def _regions(trace: Trace, layer: TraceLayer, larger_than: int) -> list[CopiedRegion]:
    """The copied regions of the sources among the candidates."""
    sources = np.unique(layer.hits.sources[layer.hits.found()])
    tokens = layer.source.tokens
    return copied_regions(trace.grid, tokens, trace.tokens, sources.tolist(), larger_than)


def _rows(
    trace: Trace,
    layer: int,
    regions: Iterable[CopiedRegion],
    mine: np.ndarray,
    nearest: np.ndarray,
) -> list[SourceRow]:
    """The rows of a layer; `nearest` [N] gets the squared distances of the regions."""
    shares, table = trace.source_shares(layer), trace.layers[layer].source.sources
    copied: dict[int, list[CopiedRegion]] = {}
    for one in regions:
        copied.setdefault(one.source, []).append(one)
    rows = []
    for number in sorted({*np.flatnonzero(shares > 0).tolist(), *copied}):
        its, source = copied.get(number, []), table[number]
        largest = max((len(one.positions) for one in its), default=0)
        away = _distance(its, source, trace.grid, mine, nearest)
        asked = trace.layers[layer].number
        rows.append(SourceRow(layer, asked, number, source, float(shares[number]), largest, away))
    return rows


def _distance(
    regions: Sequence[CopiedRegion],
    source: Source,
    grid: Grid,
    mine: np.ndarray,
    nearest: np.ndarray,
) -> float | None:
    """Root mean square over the cells of the regions; None where it is not known."""
    if not regions:
        return None
    try:
        its = cells(open_thumbnail(source.thumbnail), grid)
    except ValueError:
        return None
    squares = []
    for one in regions:
        there = one.positions + one.down * grid.width + one.right
        square = ((mine[one.positions] - its[there]) ** 2).mean(axis=1)
        nearest[one.positions] = np.minimum(nearest[one.positions], square)
        squares.append(square)
    return float(np.sqrt(np.concatenate(squares).mean()))


def cells(picture: Image.Image, grid: Grid) -> np.ndarray:
    """The pixels [N, values] of each token's cell, 0 to 1, of a picture of any size."""
    small = picture.convert("RGB").resize(
        (grid.width * CELL, grid.height * CELL), Image.Resampling.BOX
    )
    pixels = np.asarray(small, np.float64) / 255
    parts = pixels.reshape(grid.height, CELL, grid.width, CELL, 3).transpose(0, 2, 1, 3, 4)
    return parts.reshape(grid.size, -1)
