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
    """The engine's progress callback: one tick per token, one picture per `every` rows and, at the
    end, the whole picture."""

    def __init__(self, model: ImageModel, device: torch.device, every: int) -> None:
        self.model = model
        self.device = device
        self.every = 0 if switched_off() else every
        self.shown = 0
        self.bar = comfy.utils.ProgressBar(model.config.grid.size)

    def __call__(self, decided: int, tokens: np.ndarray) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        rows, height = decided // self.model.config.grid.width, self.model.config.grid.height
        image = None
        if self.every and (self.shown + self.every <= rows or self.shown < rows == height):
            self.shown = rows
            picture = self.picture(tokens, rows)
            image = ("JPEG", picture, max(picture.size))
        self.bar.update_absolute(decided, preview=image)

    def picture(self, tokens: np.ndarray, rows: int) -> Image.Image:
        """All pictures of the batch side by side in their real size, as far as `rows` reach."""
        grid = self.model.config.grid
        codes = torch.from_numpy(tokens).view(-1, grid.height, grid.width)[:, :rows]
        height, width = self.model.config.image_size
        canvases = []
        for one in codes.split(1):
            pixels = to_uint8(self.model.vq.decode(one.to(self.device)))[0].cpu().numpy()
            canvas = Image.new("RGB", (width, height), UNDRAWN)
            canvas.paste(Image.fromarray(pixels))
            canvases.append(canvas)
        return tile(canvases)


def switched_off() -> bool:
    """Whether the person who started ComfyUI chose `--preview-method none`.

    It is also 0.3.75's default, so it is no choice of the user.
    """
    none = LatentPreviewMethod.NoPreviews
    given = any(word.startswith("--preview-method") for word in sys.argv)
    return given and args.preview_method == none
