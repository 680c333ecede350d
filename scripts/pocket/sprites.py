"""Emoji cut out of their npm packages: fetched, cropped, recoloured and resized on demand."""

from __future__ import annotations

import colorsys
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Package:
    """An npm package of pictures."""

    name: str
    version: str
    folder: str
    """Where its pictures are, named by code points."""
    suffix: str
    licence: str
    """What its package.json must say; NOTICE has the licences of the artwork."""

    @property
    def archive(self) -> str:
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = {
    "fluent": Package("@lobehub/fluent-emoji-3d", "1.1.0", "package/assets", ".webp", "MIT"),
    "google": Package("emoji-datasource-google", "16.0.0", "package/img/google/64", ".png", "MIT"),
}
"""Drawing style -> where its pictures come from."""
STYLES = tuple(PACKAGES)
BASE_SIZE = 112
"""Longest side in pixels at which sprites are kept and recoloured."""

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.99, 1.1, 0.95),
    "orange": (0.075, 1.2, 1.05),
    "yellow": (0.14, 1.1, 1.15),
    "green": (0.34, 0.9, 0.85),
    "blue": (0.60, 1.0, 0.95),
    "purple": (0.76, 0.85, 0.9),
    "pink": (0.91, 0.55, 1.15),
    "black": (0.0, 0.0, 0.3),
    "white": (0.1, 0.06, 1.35),
}
"""Name -> hue in turns, factor on saturation, factor on brightness."""


def fetch(folder: Path, style: str = STYLES[0]) -> Path:
    """A style's archive in `folder`, downloaded with npm if it is not there yet."""
    package = PACKAGES[style]
    path = folder / package.archive
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        wanted = f"{package.name}@{package.version}"
        subprocess.run(["npm", "pack", wanted], cwd=folder, check=True, capture_output=True)
    with tarfile.open(path) as archive:
        licence = json.load(archive.extractfile("package/package.json"))["license"]
    if licence != package.licence:
        raise ValueError(f"{path} is licensed {licence!r}, expected {package.licence}")
    return path


def read_archive(archive: Path, style: str, concepts: dict[str, str]) -> dict[str, Image.Image]:
    """Name -> cropped picture of every concept (name -> emoji).

    Raises:
        ValueError: the archive lacks some.
    """
    package = PACKAGES[style]
    wanted = {codepoints(emoji): name for name, emoji in concepts.items()}
    pictures = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            path = Path(member.name)
            stem = path.stem.replace("-fe0f", "")
            found = path.suffix == package.suffix and str(path.parent) == package.folder
            if found and stem in wanted:
                data = io.BytesIO(tar.extractfile(member).read())
                pictures[wanted[stem]] = _crop(Image.open(data).convert("RGBA"))
    missing = concepts.keys() - pictures.keys()
    if missing:
        raise ValueError(f"{archive} has no picture for {sorted(missing)}")
    return pictures


def codepoints(emoji: str) -> str:
    """What an emoji's picture is called in the packages."""
    return "-".join(f"{ord(c):04x}" for c in emoji if c != "\ufe0f")


def _crop(picture: Image.Image) -> Image.Image:
    """The visible part of an RGBA picture, its longest side scaled to BASE_SIZE."""
    visible = picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    picture = picture.crop(visible)
    scale = BASE_SIZE / max(picture.size)
    return picture.resize([max(1, round(s * scale)) for s in picture.size], Image.LANCZOS)


def recolor(rgb: np.ndarray, color: str) -> np.ndarray:
    """`rgb` [H, W, 3] in 0..1 with its main colour replaced by the named one.

    Pixels far in hue from the main colour stay as they are (windows, leaves, tyres); a picture
    without a main colour (an elephant) is tinted as a whole.
    """
    hue, sat, factor = COLORS[color]
    value = rgb.max(axis=2)
    chroma = value - rgb.min(axis=2)
    angle = np.arctan2(
        np.sqrt(3) * (rgb[..., 1] - rgb[..., 2]), 2 * rgb[..., 0] - rgb[..., 1:].sum(2)
    )
    direction = (chroma * np.exp(1j * angle)).sum()
    saturation = chroma / np.maximum(value, 1e-3)
    if np.abs(direction) < 0.2 * value.sum():  # grey all over
        share, strength = np.ones_like(value), np.full_like(value, 0.55)
    else:
        share = np.clip(2 * np.cos(angle - np.angle(direction)) - 0.4, 0, 1)
        share = share * np.clip(saturation * 5 - 0.3, 0, 1)
        strength = saturation
    pure = np.array(colorsys.hsv_to_rgb(hue, 1, 1))
    strength = np.clip(strength * sat, 0, 1)[..., None]
    painted = np.clip(value * factor, 0, 1)[..., None] * (1 - strength * (1 - pure))
    return rgb + share[..., None] * (painted - rgb)


class Sprites:
    """Pictures of one style, held at BASE_SIZE; smaller sizes are made once and kept.

    Args:
        pictures: name -> RGBA picture with its longest side BASE_SIZE.
    """

    def __init__(self, pictures: dict[str, Image.Image], style: str) -> None:
        self.pictures, self.style = pictures, style
        self.at = lru_cache(maxsize=40000)(self._at)

    def extent(self, name: str, size: int) -> tuple[int, int]:
        """Width and height of a sprite whose longest side is `size` pixels."""
        scale = size / BASE_SIZE
        width, height = (max(1, round(s * scale)) for s in self.pictures[name].size)
        return width, height

    def _at(self, name: str, color: str | None, size: int) -> np.ndarray:
        """Sprite [h, w, 4] float32, colour premultiplied with alpha, longest side `size` pixels."""
        picture = self.pictures[name]
        if color:
            pixels = np.asarray(picture, dtype=np.float32) / 255
            pixels = np.dstack([recolor(pixels[..., :3], color), pixels[..., 3]])
            picture = Image.fromarray((pixels * 255).round().astype(np.uint8), "RGBA")
        small = picture.resize(self.extent(name, size), Image.LANCZOS)
        pixels = np.asarray(small, dtype=np.float32) / 255
        pixels[..., :3] *= pixels[..., 3:]
        return pixels
