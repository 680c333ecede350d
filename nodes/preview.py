"""Progress, interrupt and a live picture while a sampler draws."""

from __future__ import annotations

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from PIL import Image

from ..arrag_engine.images import tile
from ..arrag_engine.janus import JanusPro
from ..arrag_engine.vq import to_uint8

PREVIEW_SIZE = 512
"""Longest side in pixels of what is sent to the browser."""
UNDRAWN = "#303030"


class Preview:
    """The engine's progress callback: one tick per token, one picture per `every` rows."""

    def __init__(self, model: JanusPro, device: torch.device, every: int) -> None:
        self.model = model
        self.device = device
        self.every = every
        self.shown = 0
        self.bar = comfy.utils.ProgressBar(model.config.grid.size)

    def __call__(self, decided: int, tokens: np.ndarray) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        rows = decided // self.model.config.grid.width
        image = None
        if self.every and self.shown + self.every <= rows < self.model.config.grid.height:
            self.shown = rows
            image = ("JPEG", self.picture(tokens, rows), PREVIEW_SIZE)
        self.bar.update_absolute(decided, preview=image)

    def picture(self, tokens: np.ndarray, rows: int) -> Image.Image:
        """All pictures of the batch side by side, as far as `rows` reach."""
        grid = self.model.config.grid
        codes = torch.from_numpy(tokens).view(-1, grid.height, grid.width)[:, :rows]
        height, width = self.model.config.image_size
        canvases = []
        for one in codes.split(1):
            pixels = to_uint8(self.model.vq.decode(one.to(self.device)))[0].cpu().numpy()
            canvas = Image.new("RGB", (width, height), UNDRAWN)
            canvas.paste(Image.fromarray(pixels))
            canvases.append(canvas)
        return enlarge(tile(canvases))


def enlarge(image: Image.Image) -> Image.Image:
    """Small pictures by a whole factor, so that the browser does not show a stamp."""
    factor = max(1, PREVIEW_SIZE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
