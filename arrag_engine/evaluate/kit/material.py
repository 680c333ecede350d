"""The pictures of the kit: an index of most of them, and some that are held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ...build.encoding import Encoded, encode_all, join
from ...build.listing import Picture, ReadSettings, list_folder
from ...build.reading import prepare_file, read_ahead
from ...checkpoints import Checkpoint
from ...errors import InputError
from ...index import PatchIndex, create_index, load_index, save_index
from ...recommended import recommended
from ..benchmark import Progress, evenly
from ..journal import Journal
from .effort import HELD_OUT, Effort

INDEX = "index.safetensors"


@dataclass(frozen=True)
class HeldOut:
    """A picture that the index lacks."""

    tokens: np.ndarray
    """[N] int64."""
    caption: str


@dataclass(frozen=True)
class Material:
    """What settings are measured on."""

    index: PatchIndex
    held_out: tuple[HeldOut, ...]
    unreadable: tuple[tuple[str, str], ...]
    """Names and reasons."""
    captioned: int
    """Pictures of the index that have a caption."""


def make_material(
    checkpoint: Checkpoint,
    images: Path,
    out: Path,
    effort: Effort,
    journal: Journal,
    progress: Progress,
) -> Material:
    """Encode the pictures and write their index into a folder; once, a later run reads both.

    Raises:
        InputError: Fewer than two pictures can be read.
    """
    path = out / INDEX

    def work() -> dict:
        kept, held = split(list_folder(images, ReadSettings())[0], effort)
        seen: dict[str, str] = {}
        total = len(kept) + len(held)
        count = partial(_count, progress, total)
        inside = encode(checkpoint, images, kept, seen, partial(count, 0))
        outside = encode(checkpoint, images, held, seen, partial(count, len(kept)))
        if not len(inside.tokens) or not len(outside.tokens):
            raise InputError(
                f"{images} has {len(inside.tokens) + len(outside.tokens)} readable pictures that "
                "differ; the kit needs 20 or more, better some hundred"
            )
        save_index(index_of(checkpoint, inside), path)
        captions = [source.caption for source in outside.sources]
        return {
            "held_out": [
                [row, text] for row, text in zip(outside.tokens.tolist(), captions, strict=True)
            ],
            "unreadable": [*inside.report.unreadable, *outside.report.unreadable],
            "captioned": inside.report.captioned,
        }

    if not path.is_file():
        journal.put(("material",), work())
    facts = journal.once(("material",), work)
    held = tuple(HeldOut(np.array(row, np.int64), text) for row, text in facts["held_out"])
    unreadable = tuple((name, why) for name, why in facts["unreadable"])
    return Material(load_index(path), held, unreadable, facts["captioned"])


def split(pictures: Sequence[Picture], effort: Effort) -> tuple[list[Picture], list[Picture]]:
    """(pictures of the index, pictures that are held out), evenly taken."""
    chosen = evenly(pictures, effort.pictures)
    held = chosen[HELD_OUT // 2 :: HELD_OUT] or chosen[-1:]
    names = {picture.path for picture in held}
    return [picture for picture in chosen if picture.path not in names], held


def encode(
    checkpoint: Checkpoint,
    folder: Path,
    pictures: Sequence[Picture],
    seen: dict[str, str],
    tick: Callable[[int], object],
) -> Encoded:
    """Tokens of pictures; those that are in `seen` already are left out."""
    model = checkpoint.model
    prepare = partial(prepare_file, frame=model.frame, crops="center")
    batches = read_ahead(folder, list(pictures), prepare)
    parts = encode_all(model, batches, seen, True, model.device, tick)
    return join(parts, model, True)


def index_of(checkpoint: Checkpoint, encoded: Encoded) -> PatchIndex:
    model, spec = checkpoint.model, recommended(checkpoint).keys
    vectors = encoded.vectors if spec.space == "encoder" else None
    codebook = model.vq.codebook(model.device)
    return create_index(model.grid, encoded.tokens, vectors, codebook, encoded.sources, spec)


def _count(progress: Progress, total: int, first: int, done: int) -> None:
    progress("picture encoded", first + done, total, "")
