"""The small pictures that an index keeps of its sources.

Pillow is imported inside the functions: a process that only searches does not need it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .sources import Source, SourceTable

if TYPE_CHECKING:
    from PIL import Image

SIDE = 96
LABEL = 14
GAP = 8
MOST = 400
MAX_SIDE = 1024
"""A larger thumbnail is taken for a decompression bomb."""


def open_thumbnail(data: bytes) -> Image.Image:
    """The picture of a thumbnail.

    Raises:
        ValueError: Not a readable small JPEG.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if max(image.size) > MAX_SIDE:  # known before anything is decoded
                raise ValueError("{}x{} pixels".format(*image.size))
            return image.convert("RGB")
    except UnidentifiedImageError as error:  # its message has a memory address
        raise ValueError("not a small readable JPEG (another kind of file)") from error
    except Exception as error:  # decoders raise many kinds on damaged files
        raise ValueError(f"not a small readable JPEG ({error})") from error


def contact_sheet(sources: SourceTable) -> Image.Image:
    """Thumbnails with their captions; of more than 400 pictures, 400 evenly spaced ones.

    A picture without a readable thumbnail is a grey field.
    """
    count = min(len(sources), MOST)
    numbers = np.linspace(0, len(sources) - 1, count).round().astype(int)
    shown = [sources[int(number)] for number in numbers]
    return labelled_sheet(shown, [source.caption or source.name for source in shown], count)


def labelled_sheet(sources: Sequence[Source], labels: Sequence[str], fields: int) -> Image.Image:
    """Thumbnails with labels, in a near-square sheet of so many fields."""
    from PIL import Image, ImageDraw, ImageFont

    columns = math.ceil(math.sqrt(fields))
    width, height = SIDE + GAP, SIDE + LABEL + GAP
    sheet = Image.new("RGB", (columns * width, math.ceil(fields / columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (source, label) in enumerate(zip(sources, labels, strict=True)):
        x, y = place % columns * width + GAP // 2, place // columns * height + GAP // 2
        sheet.paste(square(source), (x, y))
        pen.text((x, y + SIDE), _fitting(label), fill="black", font=ImageFont.load_default())
    return sheet


def square(source: Source) -> Image.Image:
    """The thumbnail in the middle of a grey square; the square alone if there is none that can be
    read."""
    from PIL import Image

    field = Image.new("RGB", (SIDE, SIDE), "#ccc")
    try:
        image = open_thumbnail(source.thumbnail)
    except ValueError:
        return field
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    field.paste(image.resize(size), ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return field


def _fitting(label: str) -> str:
    """What fits below a thumbnail, in letters that the built-in font has."""
    text = " ".join(label.split())[: SIDE // 6]
    return text.encode("latin-1", "replace").decode("latin-1")
