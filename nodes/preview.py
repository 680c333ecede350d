"""Progress, interrupt and a live picture while a sampler draws."""

from __future__ import annotations

import sys

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image

from ..arrag_engine.images import tile
from ..arrag_engine.models.families import ImageModel
from ..arrag_engine.models.pixels import to_uint8

UNDRAWN = "#303030"


class Preview:
    """The engine's progress callback: one tick per token, a preview whenever a picture has grown by
    `every` rows and, at the end, the whole pictures."""

    def __init__(
        self,
        model: ImageModel,
        device: torch.device,
        every: int,
        edited: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            edited: Tokens [B or 1, N] of the pictures that are edited, shown where nothing is
                drawn yet.
        """
        self.edited = edited
        self.model = model
        self.device = device
        self.every = every
        self.shown = np.zeros(1, int)
        """Rows [1 + B] at the last preview: of the progress, and of each picture."""
        self.drawn: dict[int, tuple[np.ndarray, Image.Image]] = {}
        """The rows [height, width] of tokens that each picture was last shown with, and how."""
        self.bar = comfy.utils.ProgressBar(model.config.grid.size)

    def __call__(self, decided: int, tokens: np.ndarray) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        grid = self.model.config.grid
        codes = [whole_rows(one, grid.width) for one in tokens]
        rows = np.array([decided // grid.width, *map(len, codes)])
        grown = rows - self.shown
        image = None
        if self.every and (grown.max() >= self.every or (decided == grid.size and grown[0] > 0)):
            self.shown = rows
            if self.edited is not None:
                codes = over_edited(tokens, self.edited, grid.width)
            picture = tile([self.picture(i, one) for i, one in enumerate(codes)])
            image = ("JPEG", picture, max(picture.size))
        self.bar.update_absolute(decided, preview=image)

    def picture(self, number: int, codes: np.ndarray) -> Image.Image:
        """A picture of the batch in its real size, as far as its codes [rows, width] reach. It is
        decoded again only if they have changed."""
        last = self.drawn.get(number)
        if last is not None and np.array_equal(codes, last[0]):
            return last[1]
        height, width = self.model.config.image_size
        canvas = Image.new("RGB", (width, height), UNDRAWN)
        if len(codes):
            one = torch.from_numpy(codes)[None].to(self.device)
            canvas.paste(Image.fromarray(to_uint8(self.model.vq.decode(one))[0].cpu().numpy()))
        self.drawn[number] = codes, canvas
        return canvas


def whole_rows(tokens: np.ndarray, width: int) -> np.ndarray:
    """The rows [rows, width] of tokens [N] before the first one with a gap."""
    rows = tokens.reshape(-1, width)
    gaps = np.flatnonzero((rows < 0).any(axis=1))
    return rows[: gaps[0]] if len(gaps) else rows


def over_edited(tokens: np.ndarray, edited: np.ndarray, width: int) -> list[np.ndarray]:
    """Codes [height, width] of each picture: tokens [B, N] so far, else those that are edited."""
    return list(np.where(tokens < 0, edited, tokens).reshape(len(tokens), -1, width))


def rows_between(every: int) -> int:
    """Rows from one preview to the next, 0 = none, where `every` are asked for.

    There are none if the person who started ComfyUI chose `--preview-method none`. It is also
    0.3.75's default, so without the flag it is no choice.
    """
    none = LatentPreviewMethod.NoPreviews
    given = any(word.startswith("--preview-method") for word in sys.argv)
    return 0 if given and args.preview_method == none else every
