"""The pictures of a report: heat map, contact sheet."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..bounds import OPACITY
from ..decode import Trace
from ..index.thumbnails import labelled_sheet
from .sources import Report, one_line

RAMP = ((11, 9, 36), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""From no influence to all of it."""
SHEET = 12
"""Sources on a contact sheet."""


def influence(trace: Trace) -> np.ndarray:
    """How much of each token is owed to retrieval [height, width], 0 to 1."""
    return trace.responsibility.reshape(trace.grid.height, trace.grid.width).clip(0, 1)


def heat_map(picture: Image.Image, shares: np.ndarray, opacity: float) -> Image.Image:
    """The picture under the colours of shares [height, width], each cell in one colour.

    Raises:
        InputError: The opacity is out of range.
    """
    OPACITY.check(opacity)
    places = np.linspace(0, 1, len(RAMP))
    colours = [np.interp(shares, places, channel) for channel in zip(*RAMP, strict=True)]
    map_ = Image.fromarray(np.stack(colours, axis=-1).round().astype(np.uint8))
    picture = picture.convert("RGB")
    return Image.blend(picture, map_.resize(picture.size, Image.Resampling.NEAREST), opacity)


def source_sheet(report: Report, count: int = SHEET) -> Image.Image:
    """The thumbnails of the first sources with their shares and names; `count` fields, of which
    some may be empty."""
    rows = report.rows[:count]
    labels = [f"{row.share:.0%} {one_line(row.source.name)}" for row in rows]
    return labelled_sheet([row.source for row in rows], labels, count)
