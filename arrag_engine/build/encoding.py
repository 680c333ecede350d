"""Prepared pictures to codes, vectors and sources."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from PIL import Image

from ..images import to_tensor
from ..index import Source
from ..models.families import ImageModel
from .reading import BATCH, Prepared, Unreadable


@dataclass
class Report:
    """Counts and names of pictures that were added or left out."""

    pictures: int = 0
    """Number in the index."""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """Names of pictures left out, and of those that they equal byte for byte."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """Names and reasons."""
    notes: list[str] = field(default_factory=list)
    """What was left out or ignored beside the pictures: other files by suffix, a malformed line of
    metadata, an unreadable caption; and captions whose encoding was guessed."""
    captioned: int = 0
    """Pictures in the index that have a caption."""

    @property
    def listed(self) -> int:
        """Pictures of the list: added, duplicate or unreadable."""
        return self.pictures + len(self.duplicates) + len(self.unreadable)

    def add(self, other: Report) -> None:
        self.pictures += other.pictures
        self.duplicates += other.duplicates
        self.unreadable += other.unreadable
        self.notes += other.notes
        self.captioned += other.captioned


@dataclass(frozen=True)
class Encoded:
    """Token grids of some pictures, one for each crop."""

    tokens: np.ndarray
    """[crops, N] uint16."""
    vectors: np.ndarray | None
    """The encoder's unit vectors [crops, N, dim] float32, if wanted."""
    sources: Iterable[Source]
    report: Report


def encode_all(
    model: ImageModel,
    batches: Iterable[list[Prepared | Unreadable]],
    seen: dict[str, str],
    keep_vectors: bool,
    device: torch.device,
    progress: Callable[[int], object],
    done: int = 0,
) -> Iterator[Encoded]:
    """Encode each batch.

    Args:
        seen: Name by sha256 of what is in already; such pictures are left out, others are added.
        progress: Called with the pictures done, `done` of them before this.
    """
    for batch in batches:
        taken, report = _without_duplicates(batch, seen)
        images = [image for picture in taken for image in picture.images]
        sources = [source for picture in taken for source in picture.sources]
        part_done = partial(_advance, progress, done, len(batch))
        tokens, vectors = encode_images(model, images, device, part_done)
        yield Encoded(tokens, vectors if keep_vectors else None, sources, report)
        done += len(batch)
        progress(done)


def _advance(progress: Callable[[int], object], done: int, size: int, share: float) -> None:
    if share < 1:  # a batch is done only when it is written down
        progress(done + int(share * size))


@torch.inference_mode()
def encode_images(
    model: ImageModel,
    images: list[Image.Image],
    device: torch.device,
    progress: Callable[[float], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Codes [images, N] uint16 and unit vectors [images, N, dim] float32 of RGB pictures.

    On a CPU they are encoded one by one: batches gain nothing there and change the rounding, so
    that a picture's vectors would depend on its neighbours in the folder.

    Args:
        images: Of the size the model draws.
        progress: Called with the share that is done.
    """
    grid, dim = model.config.grid, model.config.vq.codebook_dim
    tokens = np.empty((len(images), grid.size), np.uint16)
    vectors = np.empty((len(images), grid.size, dim), np.float32)
    step = 1 if device.type == "cpu" else BATCH
    for start in range(0, len(images), step):
        some = slice(start, min(start + step, len(images)))
        codes, units = model.vq.encode(to_tensor(images[some]).to(device))
        tokens[some] = codes.flatten(1).cpu().numpy()
        vectors[some] = units.flatten(1, 2).cpu().numpy()
        if progress is not None:
            progress(some.stop / len(images))
    return tokens, vectors


def join(parts: Iterable[Encoded], model: ImageModel, keep_vectors: bool) -> Encoded:
    """All parts as one."""
    grid, dim = model.config.grid, model.config.vq.codebook_dim
    tokens = [np.empty((0, grid.size), np.uint16)]
    vectors = [np.empty((0, grid.size, dim), np.float32)]
    sources, report = [], Report()
    for part in parts:
        tokens.append(part.tokens)
        if part.vectors is not None:
            vectors.append(part.vectors)
        sources += part.sources
        report.add(part.report)
    joined = np.concatenate(vectors) if keep_vectors else None
    return Encoded(np.concatenate(tokens), joined, sources, report)


def _without_duplicates(
    batch: list[Prepared | Unreadable], seen: dict[str, str]
) -> tuple[list[Prepared], Report]:
    taken, report = [], Report()
    for picture in batch:
        if isinstance(picture, Unreadable):
            report.unreadable.append((picture.name, picture.reason))
        elif picture.sha256 in seen:
            report.duplicates.append((picture.name, seen[picture.sha256]))
        else:
            seen[picture.sha256] = picture.name
            taken.append(picture)
    report.pictures = len(taken)
    report.captioned = sum(bool(picture.sources[0].caption) for picture in taken)
    return taken, report
