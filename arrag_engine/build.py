"""Patch indexes from folders of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .errors import InputError
from .images import fit, list_pictures, open_picture, thumbnail, to_tensor
from .index import KeySpec, PatchIndex, Source
from .janus import JanusPro

BATCH = 8
MAX_CODES = 2**16


@dataclass
class Built:
    """An index and what did not get into it."""

    index: PatchIndex
    skipped: list[tuple[Path, str]]
    """Unreadable pictures and why."""


@dataclass
class _Collected:
    tokens: list[np.ndarray] = field(default_factory=list)
    vectors: list[np.ndarray] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)


@torch.inference_mode()
def build_index(
    model: JanusPro,
    folder: Path,
    spec: KeySpec | None = None,
    licence: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Built:
    """Encode every picture under `folder`: resized, centre-cropped, cut into the model's patches.

    The caption of `x.png` is the text of `x.txt`, if there is one.

    Args:
        spec: How keys are made; the reference's way when absent.
        licence: Noted for every picture.
        progress: Called with (pictures done, pictures in all).

    Raises:
        InputError: No folder, or no readable picture in it.
    """
    if model.config.vq.codebook_size > MAX_CODES:
        raise InputError(
            f"the model has {model.config.vq.codebook_size} codes, an index holds {MAX_CODES}"
        )
    paths = list_pictures(folder)
    collected = _Collected()
    for start in range(0, len(paths), BATCH):
        _encode_batch(model, Path(folder), paths[start : start + BATCH], licence, collected)
        if progress is not None:
            progress(min(start + BATCH, len(paths)), len(paths))
    if not collected.sources:
        reasons = "".join(f"; {p.name}: {why}" for p, why in collected.skipped[:3])
        raise InputError(
            f"{folder} holds no readable PNG, JPEG or WebP picture{reasons}; choose another folder"
        )
    spec = spec or KeySpec()
    index = PatchIndex(
        model.config.grid,
        np.concatenate(collected.tokens),
        np.concatenate(collected.vectors) if spec.space == "encoder" else None,
        model.vq.codebook(model.device),
        collected.sources,
        spec,
    )
    return Built(index, collected.skipped)


def _encode_batch(
    model: JanusPro, folder: Path, paths: list[Path], licence: str, into: _Collected
) -> None:
    images = []
    for path in paths:
        try:
            image = open_picture(path)
        except InputError as error:
            into.skipped.append((path, str(error)))
            continue
        images.append(fit(image, *model.config.image_size))
        into.sources.append(_describe(path, folder, image, licence))
    if not images:
        return
    codes, vectors = model.vq.encode(
        to_tensor(images).to(model.device)
    )  # [B, h, w], [B, h, w, dim]
    size = model.config.grid.size
    into.tokens.append(codes.view(-1, size).cpu().numpy().astype(np.uint16))
    into.vectors.append(vectors.reshape(len(images), size, -1).cpu().numpy())


def _describe(path: Path, folder: Path, image: Image.Image, licence: str) -> Source:
    caption = path.with_suffix(".txt")
    name = path.relative_to(folder).as_posix()
    return Source(
        name.encode(errors="replace").decode(),  # a file name need not be text
        caption.read_text(encoding="utf-8", errors="replace").strip() if caption.is_file() else "",
        image.width,
        image.height,
        hashlib.sha256(path.read_bytes()).hexdigest(),
        licence,
        thumbnail(image),
    )
