"""Pictures from and to files and arrays."""

from __future__ import annotations

import io
import math
from pathlib import Path

import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .errors import InputError
from .files import atomic_write

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
MAX_PIXELS = 100_000_000
"""A larger picture is taken for a decompression bomb."""
THUMBNAIL = 64


def list_pictures(folder: Path) -> list[Path]:
    """Picture files anywhere under `folder`, in name order.

    Raises:
        InputError: The folder does not exist.
    """
    if not Path(folder).is_dir():
        raise InputError(f"there is no folder {folder}")
    return sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)


def open_picture(path: Path) -> Image.Image:
    """The picture as RGB, upright, transparency on white.

    Raises:
        InputError: The file cannot be read as a picture, or is implausibly large.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{image.width}x{image.height} pixels, the most is {MAX_PIXELS}")
            return _upright_rgb(image)
    except InputError:
        raise
    except Exception as error:  # decoders raise many kinds on damaged files
        raise InputError(f"not a readable picture ({error})") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit greyscale; converting it straight would clip
        image = image.point(lambda v: v / 256).convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize and centre-crop to height x width pixels."""
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


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
