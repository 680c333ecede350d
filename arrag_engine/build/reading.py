"""Pictures read, cropped and resized for the encoder, a batch ahead of it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import InputError
from ..images import Frame, open_picture, read_bytes, thumbnail
from ..index import Source
from .listing import Picture

BATCH = 8
"""Pictures read, encoded and written down together."""
READERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Prepared:
    """A picture as the encoder takes it: an image and a source for each crop."""

    name: str
    sha256: str
    images: list[Image.Image]
    sources: list[Source]


@dataclass(frozen=True)
class Unreadable:
    """A picture that cannot be used."""

    name: str
    reason: str


def prepare_file(picture: Picture, frame: Frame, crops: str) -> Prepared | Unreadable:
    """Read, hash, crop and resize a picture file to images of a frame."""
    try:
        data = read_bytes(picture.path)
        image = open_picture(data, os.path.splitext(picture.path)[1])
        return _prepare(image, hashlib.sha256(data), picture, frame, crops)
    except InputError as error:
        return Unreadable(picture.name, str(error))
    except MemoryError:
        return Unreadable(picture.name, "it does not fit into memory")


def prepare_image(
    image: Image.Image, picture: Picture, frame: Frame, crops: str
) -> Prepared | Unreadable:
    """The same for an upright RGB picture in memory; its hash is that of its pixels."""
    try:
        digest = hashlib.sha256(str(image.size).encode() + image.tobytes())
        return _prepare(image, digest, picture, frame, crops)
    except InputError as error:
        return Unreadable(picture.name, str(error))


def _prepare(
    image: Image.Image, digest: Any, picture: Picture, frame: Frame, crops: str
) -> Prepared:
    images, sources = [], []
    for box, part in frame.cuts(image, crops):
        images.append(part)
        left, top, right, bottom = box
        sources.append(
            Source(
                picture.name,
                picture.caption,
                image.width,
                image.height,
                digest.hexdigest(),
                picture.licence,
                thumbnail(images[-1]),
                picture.origin,
                (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)),
            )
        )
    return Prepared(picture.name, digest.hexdigest(), images, sources)


def read_ahead(
    folder: Path,
    pictures: Sequence[Picture],
    prepare: Callable[[Picture], Prepared | Unreadable],
    done: int = 0,
) -> Iterator[list[Prepared | Unreadable]]:
    """Batches of prepared pictures in order; threads read the next one while one is being encoded.

    Args:
        done: Pictures to leave out because they are done.

    Raises:
        InputError: The folder has disappeared.
    """
    batches = [pictures[i : i + BATCH] for i in range(done, len(pictures), BATCH)]
    with ThreadPoolExecutor(READERS, thread_name_prefix="read") as pool:
        try:
            ahead = [[pool.submit(prepare, p) for p in batch] for batch in batches[:1]]
            for following in [*batches[1:], []]:
                ahead.append([pool.submit(prepare, p) for p in following])
                batch = [future.result() for future in ahead.pop(0)]
                if any(isinstance(p, Unreadable) for p in batch) and _gone(folder):
                    raise InputError(
                        f"the folder {folder} has disappeared after {done} of {len(pictures)} "
                        "pictures; restore it and build again"
                    )
                yield batch
                done += len(batch)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _gone(folder: Path) -> bool:
    """Whether the folder is missing, or empty as an unmounted disk's is."""
    try:
        return next(folder.iterdir(), None) is None
    except OSError:
        return True
