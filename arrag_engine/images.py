"""Pictures from and to files and arrays."""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .errors import InputError
from .files import atomic_write

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
FORMATS = ("PNG", "JPEG", "WEBP")
"""What a file may be, whatever its name ends in: other decoders of Pillow are never called."""
MAX_PIXELS = 100_000_000
"""A larger picture is taken for a decompression bomb."""
MAX_BYTES = 2**30
MAX_CROPS = 64
THUMBNAIL = 64
ORIENTATION = 0x0112
"""Exif's tag for how the camera was held."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


def list_pictures(
    folder: Path, unreadable: Callable[[OSError], object] | None = None
) -> list[Path]:
    """Picture files anywhere under `folder`, in name order; links to folders are followed.

    Args:
        unreadable: Called with the error of every folder that cannot be looked into.

    Raises:
        InputError: The folder does not exist.
    """
    if not Path(folder).is_dir():
        raise InputError(f"there is no folder {folder}")
    found, seen = [], set()
    for here, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        place = os.path.realpath(here)
        if place in seen:  # a link back
            folders.clear()
            continue
        seen.add(place)
        # a folder that is called like a picture is reported, not overlooked
        found += [Path(here, n) for n in (*files, *folders) if Path(n).suffix.lower() in SUFFIXES]
    return sorted(found)


def read_bytes(path: Path) -> bytes:
    """What is in a picture file.

    Raises:
        InputError: Not a file (a pipe would never end), implausibly large, or unreadable.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise InputError("not a readable picture (not a file)")
        if facts.st_size > MAX_BYTES:
            raise InputError(f"{facts.st_size} bytes, at most {MAX_BYTES} are allowed")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"not a readable picture ({error.strerror or error})") from error


def open_picture(file: Path | bytes) -> Image.Image:
    """The picture (of an animation the first) as RGB, upright, transparency on white.

    Args:
        file: A path, or what is in the file.

    Raises:
        InputError: It cannot be read as a picture, or is implausibly large.
    """
    data = file if isinstance(file, bytes) else read_bytes(file)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"{image.width}x{image.height} pixels, at most {MAX_PIXELS} are allowed"
                )
            return _upright_rgb(image)
    except InputError:
        raise
    except UnidentifiedImageError as error:  # its own words name a place in memory
        raise InputError("not a readable picture (neither PNG, JPEG nor WebP)") from error
    except Exception as error:  # decoders raise many kinds on damaged files
        raise InputError(f"not a readable picture ({error})") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    if image.getexif().get(ORIENTATION, 1) != 1:  # else it would only be copied
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """The upper half of 16-bit greyscale, which Pillow would clip; the value that stands for
    transparency has 16 bits too."""
    values = np.asarray(image).astype(np.uint16)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if "transparency" not in image.info:
        return grey
    opaque = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
    return Image.merge("LA", (grey, Image.fromarray(opaque)))


def crop_boxes(size: tuple[int, int], height: int, width: int, crops: str = "center") -> list[Box]:
    """What to cut out of a picture of `size` (width, height) to get height x width pixels.

    `center`: the largest box of that shape in the middle. `cover`: the fewest boxes of that size
    that see every pixel, evenly spaced.

    Raises:
        InputError: More than `MAX_CROPS` boxes.
    """
    across, down = size
    scale = min(across / width, down / height)
    w, h = min(width * scale, across), min(height * scale, down)
    if crops == "center":
        left, top = (across - w) / 2, (down - h) / 2
        return [(left, top, left + w, top + h)]
    count = max(math.ceil(across / w - 1e-9), math.ceil(down / h - 1e-9))
    if count > MAX_CROPS:
        raise InputError(
            f"{across}x{down} pixels need {count} crops, at most {MAX_CROPS} are allowed; crop the "
            "picture yourself, or take the centre only"
        )
    steps = [i / (count - 1) if count > 1 else 0.0 for i in range(count)]
    corners = [((across - w) * s, (down - h) * s) for s in steps]
    return [(left, top, left + w, top + h) for left, top in corners]


def cut(image: Image.Image, box: Box, height: int, width: int) -> Image.Image:
    """The part of the picture inside the box, resized to height x width pixels."""
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize and centre-crop to height x width pixels."""
    return cut(image, crop_boxes(image.size, height, width)[0], height, width)


def from_floats(pixels: Tensor) -> Image.Image:
    """The RGB picture of [H, W, 1, 3 or 4 channels] in [0, 1], transparency on white."""
    array = (pixels.float().nan_to_num().clamp(0, 1) * 255).round().byte().cpu().numpy()
    if array.shape[-1] == 1:
        array = array[..., 0]
    return _upright_rgb(Image.fromarray(array))


def to_tensor(images: list[Image.Image]) -> Tensor:
    """[B, 3, H, W] float32 in [-1, 1] of RGB pictures of one size."""
    pixels = [torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8) for i in images]
    height, width = images[0].height, images[0].width
    stacked = torch.stack([p.view(height, width, 3) for p in pixels])
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def thumbnail(image: Image.Image) -> bytes:
    """A small JPEG of the picture."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def save_png(image: Image.Image, path: Path, text: dict[str, str]) -> None:
    """Write a PNG with text fields; readers never see half of it.

    Raises:
        InputError: The file cannot be written.
    """
    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value)
    with atomic_write(path) as temporary:
        image.save(temporary, "PNG", pnginfo=info)


def tile(images: list[Image.Image]) -> Image.Image:
    """One picture of all, in a near-square sheet."""
    columns = math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "#222")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet
