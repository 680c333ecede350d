"""Pictures from and to files and arrays."""

from __future__ import annotations

import io
import math
import os
import re
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .errors import InputError
from .files import atomic_write

FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JXL", "JPEG2000"),
    *("PPM", "SGI", "QOI", "PSD", "DDS"),
)
"""What a file may be, whatever its name ends in, where Pillow or a plug-in of it reads it. Other
decoders of Pillow are never called: some start programs."""
UNSIGNED = ("TGA", "PCX")
"""Formats without a signature: only files with their suffixes are tried."""
SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|....ftypavi[fs]", re.DOTALL
)
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
KEPT_CHUNKS = (b"tRNS", b"eXIf")
KEPT_SEGMENTS = (0xE0, 0xE1, 0xEE)
"""APP0, Exif, and Adobe's, which names the colour model."""
SOS = 0xDA
"""JPEG's marker of the pixels."""
MAX_PIXELS = 100_000_000
"""A larger picture is taken for a decompression bomb."""
MAX_BYTES = 2**30
MAX_CROPS = 64
THUMBNAIL = 64
ORIENTATION = 0x0112
"""Exif's tag for the orientation of the camera."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that turns a picture of an orientation upright."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


def picture_suffixes() -> set[str]:
    """Suffixes of files that are read as pictures, in lower case."""
    wanted = {*FORMATS, *UNSIGNED, "MPO"}
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in wanted}


def looks_like_picture(path: str) -> bool:
    """Whether a file begins as a picture does, whatever its suffix; False if it is unreadable."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            return SIGNATURE.match(file.read(16)) is not None
    except OSError:
        return False


def read_bytes(path: str | Path) -> bytes:
    """The content of a picture file.

    Raises:
        InputError: Not a file (a pipe would never end), implausibly large, or unreadable.
    """
    try:
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):
            raise InputError("not a readable picture (not a file)")
        if facts.st_size > MAX_BYTES:
            raise InputError(f"{facts.st_size} bytes, at most {MAX_BYTES} are allowed")
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"not a readable picture ({error.strerror or error})") from error


def open_picture(file: Path | bytes, suffix: str = "") -> Image.Image:
    """The picture (of an animation the first) as RGB, upright, transparency on white.

    Metadata that is damaged or implausibly large is skipped.

    Args:
        file: A path, or what is in the file.
        suffix: Of the name of a file whose content is given; it matters to few formats.

    Raises:
        InputError: It cannot be read as a picture, or is implausibly large.
    """
    if isinstance(file, Path):
        file, suffix = read_bytes(file), file.suffix
    try:
        return _decode(file, suffix)
    except InputError:
        raise
    except Exception as error:  # decoders raise many kinds on damaged files
        pixels = without_metadata(file)
        if pixels == file:
            raise _unreadable(error) from error
    try:
        return _decode(pixels, suffix)
    except InputError:
        raise
    except Exception as error:
        raise _unreadable(error) from error


def _decode(data: bytes, suffix: str) -> Image.Image:
    Image.init()
    kinds = [kind for kind in FORMATS if kind in Image.OPEN]
    named = Image.registered_extensions().get(suffix.lower())
    if named in UNSIGNED:
        kinds.append(named)
    with Image.open(io.BytesIO(data), formats=kinds) as image:
        if image.width * image.height > MAX_PIXELS:
            raise InputError(
                f"{image.width}x{image.height} pixels, at most {MAX_PIXELS} are allowed"
            )
        return _upright_rgb(image)


def _unreadable(error: Exception) -> InputError:
    if isinstance(error, UnidentifiedImageError):  # its message has a memory address
        return InputError("not a readable picture (unknown format)")
    return InputError(f"not a readable picture ({error})")


def without_metadata(data: bytes) -> bytes:
    """A PNG or JPEG file without texts, colour profiles and the like; others as they are."""
    if data.startswith(PNG):
        return _png_without_metadata(data)
    return _jpeg_without_metadata(data) if data.startswith(JPEG) else data


def _png_without_metadata(data: bytes) -> bytes:
    kept, at = [PNG], len(PNG)
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body, end = data[at + 4 : at + 8 + size], at + 12 + size
        whole = data[end - 4 : end] == zlib.crc32(body).to_bytes(4, "big")
        if kind[:1].isupper() or (kind in KEPT_CHUNKS and whole):  # upper case: needed by readers
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _jpeg_without_metadata(data: bytes) -> bytes:
    kept, at = [JPEG], len(JPEG)
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"", bytes([SOS])):
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE  # APP0 to APP15, a comment
        if not metadata or marker in KEPT_SEGMENTS:
            kept.append(data[at:end])
        at = end
    return b"".join((*kept, data[at:]))


def _upright_rgb(image: Image.Image) -> Image.Image:
    turn = UPRIGHT.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F":
        raise InputError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Orientation of the camera; 1, which is upright, also for damaged Exif data."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's parser raises many kinds
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """The upper half of 16-bit greyscale, which Pillow would clip; the value that stands for
    transparency has 16 bits too."""
    values = np.asarray(image)
    if values.max() >= 2**16 or values.min() < 0:
        raise InputError("its pixels have 32 bits; save it with 8 or 16 bits")
    values = values.astype(np.uint16)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if "transparency" not in image.info:
        return grey
    opaque = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
    return Image.merge("LA", (grey, Image.fromarray(opaque)))


def crop_boxes(size: tuple[int, int], height: int, width: int, crops: str = "center") -> list[Box]:
    """The boxes to cut out of a picture of `size` (width, height) to get height x width pixels.

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


@dataclass(frozen=True)
class Frame:
    """How pictures are brought to the size that a model draws."""

    height: int
    width: int
    resample: Image.Resampling = Image.Resampling.LANCZOS
    whole: bool = False
    """Whether the middle of a picture is taken by `square`; the frame is one then."""

    def fit(self, image: Image.Image) -> Image.Image:
        """The middle of a picture, resized."""
        return self.cuts(image)[0][1]

    def cuts(self, image: Image.Image, crops: str = "center") -> list[tuple[Box, Image.Image]]:
        """The parts of a picture, resized, and the boxes where they stand; see `crop_boxes`."""
        boxes = crop_boxes(image.size, self.height, self.width, crops)
        if self.whole and crops == "center":
            return [(boxes[0], square(image, self.width, self.resample))]
        return [(box, cut(image, box, self.height, self.width, self.resample)) for box in boxes]


def square(image: Image.Image, side: int, resample: Image.Resampling) -> Image.Image:
    """The middle of a picture, its shorter side resized to `side` pixels, cut out at whole pixels,
    as Show-o's programs do it.

    Raises:
        InputError: It is so thin that this takes implausibly many pixels.
    """
    short = min(image.size)
    width, height = (int(side * n / short) for n in image.size)
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{image.width}x{image.height} pixels would be resized to {width}x{height}, at most "
            f"{MAX_PIXELS} are allowed; crop the picture yourself"
        )
    resized = image.resize((width, height), resample)
    left, top = (round((n - side) / 2) for n in (width, height))
    return resized.crop((left, top, left + side, top + side))


def cut(
    image: Image.Image,
    box: Box,
    height: int,
    width: int,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """The part of the picture inside the box, resized to height x width pixels."""
    return image.resize((width, height), resample, box=box)


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize and centre-crop to height x width pixels."""
    return cut(image, crop_boxes(image.size, height, width)[0], height, width)


def from_floats(pixels: Tensor) -> Image.Image:
    """The RGB picture of [H, W, 1, 3 or 4 channels] in [0, 1], transparency on white."""
    array = (pixels.float().nan_to_num().clamp(0, 1) * 255).round().byte().cpu().numpy()
    if array.shape[-1] == 1:
        array = array[..., 0]
    return _upright_rgb(Image.fromarray(array))


def read_mask(file: Path | bytes) -> np.ndarray:
    """Shares [h, w] float32 from 0 (black) to 1 (white) of the greys of a picture.

    Raises:
        InputError: It cannot be read as a picture.
    """
    return greys(open_picture(file))


def greys(image: Image.Image) -> np.ndarray:
    """Shares [h, w] float32 from 0 (black) to 1 (white) of the greys of a picture."""
    return np.asarray(image.convert("L"), np.float32) / 255


def to_tensor(images: list[Image.Image]) -> Tensor:
    """[B, 3, H, W] float32 in [-1, 1] of RGB pictures of one size."""
    pixels = [torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8) for i in images]
    height, width = images[0].height, images[0].width
    stacked = torch.stack([p.view(height, width, 3) for p in pixels])
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_floats(images: list[Image.Image]) -> Tensor:
    """[B, H, W, 3] float32 in [0, 1] of RGB pictures of one size."""
    return ((to_tensor(images) + 1) / 2).permute(0, 2, 3, 1)


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
