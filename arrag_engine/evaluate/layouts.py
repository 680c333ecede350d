"""Pictures of a prompt as files, in the layout that the scorer of each benchmark reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from ..errors import InputError
from ..files import atomic_write
from ..images import save_png, tile
from .prompt_lists import Entry

Layout = Callable[[Path, Entry, Sequence[Image.Image]], list[Path]]
"""Writes the pictures of a prompt under a folder; returns the files."""
DPG_PICTURES = 4
"""Of a prompt, in one file: DPG-Bench's `--pic-num 4`."""


def write_geneval(folder: Path, entry: Entry, images: Sequence[Image.Image]) -> list[Path]:
    """GenEval: `NNNNN/metadata.jsonl`, `NNNNN/samples/0000.png`, …, and `NNNNN/grid.png`, all
    pictures of the prompt, which people look at."""
    place = _folder(folder / f"{entry.number:05}")
    samples = _folder(place / "samples")
    metadata = place / "metadata.jsonl"
    with atomic_write(metadata) as temporary:
        temporary.write_bytes(json.dumps(entry.record).encode())
    files = [samples / f"{number:04}.png" for number in range(len(images))]
    for file, image in zip(files, images, strict=True):
        save_png(image, file, {})
    save_png(tile(list(images)), place / "grid.png", {})
    return [metadata, *files, place / "grid.png"]


def write_dpg(folder: Path, entry: Entry, images: Sequence[Image.Image]) -> list[Path]:
    """DPG-Bench: `NAME.png` for `NAME.txt`, the four pictures row by row without a margin."""
    file = _folder(folder) / f"{entry.name}.png"
    save_png(tile(list(images)), file, {})
    return [file]


def write_numbered(folder: Path, entry: Entry, images: Sequence[Image.Image]) -> list[Path]:
    """`NNNNN.png`; of several pictures a prompt `NNNNN-S.png`."""
    ends = [""] if len(images) == 1 else [f"-{number}" for number in range(len(images))]
    files = [_folder(folder) / f"{entry.number:05}{end}.png" for end in ends]
    for file, image in zip(files, images, strict=True):
        save_png(image, file, {})
    return files


LAYOUTS: dict[str, Layout] = {
    "geneval": write_geneval,
    "dpg": write_dpg,
    "prompts": write_numbered,
}


def _folder(path: Path) -> Path:
    """The folder, made if it is not there.

    Raises:
        InputError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {path}: {error.strerror}; choose another folder") from error
    return path
