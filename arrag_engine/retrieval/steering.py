"""Where in the picture a layer works, and how strongly: region, span and curve as one factor of λ
for each position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..bounds import COPY_LIMIT, END, MAX_DISTANCE, ROW_WEIGHT, START, check_choice, shown
from ..errors import InputError
from ..grid import RASTER, DrawingOrder, Grid
from ..settings import CURVES, Curve

RISES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "constant": np.ones_like,
    "linear": lambda t: t,
    "ease in": np.square,
    "ease out": lambda t: 1 - np.square(1 - t),
}
"""Factor at the share t of the span that is done, 0 to 1."""


@dataclass(frozen=True, eq=False)
class Steering:
    """What an artist says of a layer beside its weight.

    Raises:
        InputError: A value out of range, a region that is not a picture of shares.
    """

    region: np.ndarray | None = None
    """Shares [h, w] from 0 (the layer does not work there) to 1, of any size: a mask."""
    start: float = 0.0
    """Share of the picture that is drawn when the layer begins: in raster order a place, from the
    top; in any other order, the share of the tokens that are known before a step."""
    end: float = 1.0
    """Where it ends. Before `start`, the curve runs backwards, from the whole weight to 0."""
    curve: Curve = "constant"
    rows: Sequence[float] = ()
    """Factors of the weight, for the curve `rows`: from top to bottom, interpolated to the rows of
    the grid."""
    max_distance: float = 0.0
    """Patches at a larger squared distance are not used; 0 = no limit."""
    copy_limit: int = 0
    """Most tokens of a copied region; 0 = no limit."""

    def __post_init__(self) -> None:
        START.check(self.start)
        END.check(self.end)
        check_choice("curve", self.curve, CURVES)
        if not isinstance(self.rows, (list, tuple)):
            raise InputError(f"rows is {shown(self.rows)}; give a list of numbers")
        for value in self.rows:
            ROW_WEIGHT.check(value)
        if (self.curve == "rows") != (len(self.rows) > 0):
            raise InputError(
                f"the curve is {self.curve} and {len(self.rows)} row weights are given; give row "
                "weights with the curve rows, and only with it"
            )
        MAX_DISTANCE.check(self.max_distance)
        COPY_LIMIT.check(self.copy_limit)
        if self.region is not None:
            check_region(self.region)

    def factors(self, grid: Grid, order: DrawingOrder = RASTER) -> np.ndarray | None:
        """Factors [N] of the layer's weight by position; None where all of them are 1. In an order
        that only the drawing shows, start, end and curve are no part of them: see `span`."""
        factor = self._rows(grid)
        if order.raster:
            factor = factor * self.span(np.arange(grid.size), grid.size)
        if self.region is not None:
            factor = factor * shares_of_cells(self.region, grid).ravel()
        return None if (factor == 1).all() else factor

    def _rows(self, grid: Grid) -> np.ndarray:
        """Factors [N] of the curve `rows`."""
        if self.curve != "rows":
            return np.ones(grid.size)
        places = np.linspace(0, 1, len(self.rows)) if len(self.rows) > 1 else [0.5]
        centres = (np.arange(grid.height) + 0.5) / grid.height
        at = (centres - centres[0]) / max(centres[-1] - centres[0], 1e-9)
        return np.repeat(np.interp(at, places, self.rows), grid.width)

    @property
    def whole(self) -> bool:
        """Whether the layer has its whole weight all the time."""
        return {self.start, self.end} == {0.0, 1.0} and self.curve in ("constant", "rows")

    def span(self, known: np.ndarray, size: int) -> np.ndarray:
        """Factors of start, end and curve when `known` [...] of `size` tokens are drawn."""
        rise = RISES.get(self.curve, np.ones_like)
        low, high = sorted((self.start, self.end))
        done = (known + 0.5) / size
        inside = (low <= done) & (done <= high)
        t = (done - low) / max(high - low, 1e-9)
        t = 1 - t if self.end < self.start else t
        return np.where(inside, rise(t.clip(0, 1)), 0.0)


def row_weights(text: str) -> list[float]:
    """Numbers of a text, separated by spaces, commas or line breaks.

    Raises:
        InputError: A part is not a number.
    """
    values = []
    for part in text.replace(",", " ").split():
        try:
            values.append(float(part))
        except ValueError:
            raise InputError(
                f"rows holds {shown(part)}; write numbers from 0 to 1, such as 1 1 0.5 0"
            ) from None
    return values


def check_region(region: np.ndarray) -> None:
    """Refuse what is not a mask.

    Raises:
        InputError: Not two-dimensional, no numbers from 0 to 1, or 0 everywhere.
    """
    if not isinstance(region, np.ndarray) or region.dtype.kind not in "fiub":
        raise InputError(f"the region is {shown(region)}; give a numpy array of numbers")
    if region.ndim != 2 or region.size == 0:
        raise InputError(
            f"the region is an array of shape {list(region.shape)}; give one mask of height x width"
        )
    if not (np.isfinite(region).all() and region.min() >= 0 and region.max() <= 1):
        raise InputError("the region holds values outside 0 to 1; give a mask")
    if not region.any():
        raise InputError("the region is empty (0 everywhere); paint where the layer is to work")


def shares_of_cells(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """Mean [height, width] of a mask [h, w] of any size over the cells of a grid, float64."""
    rows = _overlaps(mask.shape[0], grid.height)
    columns = _overlaps(mask.shape[1], grid.width)
    return np.round(rows @ mask.astype(np.float64) @ columns.T, 6)  # a full cell is exactly 1


def _overlaps(pixels: int, cells: int) -> np.ndarray:
    """[cells, pixels] share that each pixel has of each cell, along one side."""
    edges = np.arange(cells + 1)[:, None] * (pixels / cells)
    places = np.arange(pixels)[None]
    overlap = np.minimum(edges[1:], places + 1) - np.maximum(edges[:-1], places)
    overlap = overlap.clip(0)
    return overlap / overlap.sum(axis=1, keepdims=True)
