"""Made sprites, and archives like those of the emoji packages."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from concepts import CONCEPTS, LEARNT
from PIL import Image
from sprites import BASE_SIZE, PACKAGES, Sprites, codepoints

NAMES = ("car", "cat", "bus", "sun", "umbrella", "strawberry", "penguin", "star")
assert set(NAMES) <= set(LEARNT)


def made_sprites(style: str) -> Sprites:
    """Opaque rectangles of noise, each name with its own proportions."""
    pictures = {}
    for number, name in enumerate(NAMES):
        rng = np.random.default_rng((number, len(style)))
        size = (BASE_SIZE, BASE_SIZE - 9 * number)[:: 1 if number % 2 else -1]
        pixels = rng.integers(40, 220, (size[1], size[0], 4), dtype=np.uint8)
        pixels[..., 3] = 255
        pictures[name] = Image.fromarray(pixels, "RGBA")
    return Sprites(pictures, style)


def write_archives(folder: Path) -> None:
    """Archives with a blotch of its own for every concept, named and licensed as the real ones."""
    folder.mkdir(parents=True)
    for style, package in PACKAGES.items():
        with tarfile.open(folder / package.archive, "w:gz") as tar:
            _add(tar, "package/package.json", json.dumps({"license": package.licence}).encode())
            for number, emoji in enumerate(CONCEPTS.values()):
                rng = np.random.default_rng((number, len(style)))
                pixels = rng.integers(40, 220, (6, 6, 4), dtype=np.uint8)
                pixels[..., 3] = 255
                file = io.BytesIO()
                picture = Image.fromarray(pixels, "RGBA").resize((48, 48))
                picture.save(file, {".png": "PNG", ".webp": "WEBP"}[package.suffix])
                name = f"{package.folder}/{codepoints(emoji)}{package.suffix}"
                _add(tar, name, file.getvalue())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
