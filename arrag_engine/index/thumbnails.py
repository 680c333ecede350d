"""The small pictures that an index keeps of its sources.

Pillow is imported inside the functions: a process that only searches does not need it.
"""

from __future__ import annotations

import io
import math
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
    from PIL import Image, ImageDraw, ImageFont

    count = min(len(sources), MOST)
    columns = math.ceil(math.sqrt(count))
    width, height = SIDE + GAP, SIDE + LABEL + GAP
    sheet = Image.new("RGB", (columns * width, math.ceil(count / columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for place, number in enumerate(np.linspace(0, len(sources) - 1, count).round().astype(int)):
        source = sources[int(number)]
        x, y = place % columns * width + GAP // 2, place // columns * height + GAP // 2
        sheet.paste(_square(source), (x, y))
        pen.text((x, y + SIDE), _label(source), fill="black", font=ImageFont.load_default())
    return sheet


def _square(source: Source) -> Image.Image:
    from PIL import Image

    square = Image.new("RGB", (SIDE, SIDE), "#ccc")
    try:
        image = open_thumbnail(source.thumbnail)
    except ValueError:
        return square
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square.paste(image.resize(size), ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return square


def _label(source: Source) -> str:
    """What fits below a thumbnail, in letters that the built-in font has."""
    text = " ".join((source.caption or source.name).split())[: SIDE // 6]
    return text.encode("latin-1", "replace").decode("latin-1")
