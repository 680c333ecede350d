"""Progress, interrupt and a live picture while a sampler draws."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod

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


class Preview(ABC):
    """The engine's progress callback: one tick per token, and a picture of what stands, as often as
    the drawing order makes sense."""

    def __init__(self, model: ImageModel, device: torch.device, every: int) -> None:
        """
        Args:
            every: How often a preview is shown, in the unit of the order; 0 = never.
        """
        self.model = model
        self.device = device
        self.every = every
        self.drawn: dict[int, tuple[np.ndarray, Image.Image]] = {}
        """The rows [height, width] of tokens that each picture was last shown with, and how."""
        self.bar = comfy.utils.ProgressBar(model.config.grid.size)

    def __call__(self, decided: int, tokens: np.ndarray) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        codes = self.due(decided, tokens) if self.every else None
        image = None
        if codes is not None:
            picture = tile([self.picture(i, one) for i, one in enumerate(codes)])
            image = ("JPEG", picture, max(picture.size))
        self.bar.update_absolute(decided, preview=image)

    @abstractmethod
    def due(self, decided: int, tokens: np.ndarray) -> list[np.ndarray] | None:
        """Codes [rows, width] of each picture that are to be shown now, or None.

        Args:
            decided: See `Progress`.
            tokens: [B, N], -1 where there is none.
        """

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


class RowPreview(Preview):
    """Of a drawing in raster order: whenever a picture has grown by `every` rows and, at the end,
    the whole pictures."""

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
        super().__init__(model, device, every)
        self.edited = edited
        self.shown = np.zeros(1, int)
        """Rows [1 + B] at the last preview: of the progress, and of each picture."""

    def due(self, decided: int, tokens: np.ndarray) -> list[np.ndarray] | None:
        grid = self.model.config.grid
        codes = [whole_rows(one, grid.width) for one in tokens]
        rows = np.array([decided // grid.width, *map(len, codes)])
        grown = rows - self.shown
        if grown.max() < self.every and (decided < grid.size or grown[0] <= 0):
            return None
        self.shown = rows
        return codes if self.edited is None else over_edited(tokens, self.edited, grid.width)


class StepPreview(Preview):
    """Of a drawing in any order: after every `every` steps and the last one, each picture as the
    model would fill it now."""

    def __init__(self, model: ImageModel, device: torch.device, every: int) -> None:
        super().__init__(model, device, every)
        self.steps = 0

    def due(self, decided: int, tokens: np.ndarray) -> list[np.ndarray] | None:
        grid = self.model.config.grid
        self.steps += 1
        if self.steps % self.every and decided < grid.size:
            return None
        return [whole_rows(one, grid.width) for one in tokens]


def whole_rows(tokens: np.ndarray, width: int) -> np.ndarray:
    """The rows [rows, width] of tokens [N] before the first one with a gap."""
    rows = tokens.reshape(-1, width)
    gaps = np.flatnonzero((rows < 0).any(axis=1))
    return rows[: gaps[0]] if len(gaps) else rows


def over_edited(tokens: np.ndarray, edited: np.ndarray, width: int) -> list[np.ndarray]:
    """Codes [height, width] of each picture: tokens [B, N] so far, else those that are edited."""
    return list(np.where(tokens < 0, edited, tokens).reshape(len(tokens), -1, width))


def every_of(every: int) -> int:
    """Rows or steps from one preview to the next, 0 = none, where `every` are asked for.

    There are none if the person who started ComfyUI chose `--preview-method none`. It is also
    0.3.75's default, so without the flag it is no choice.
    """
    none = LatentPreviewMethod.NoPreviews
    given = any(word.startswith("--preview-method") for word in sys.argv)
    return 0 if given and args.preview_method == none else every
