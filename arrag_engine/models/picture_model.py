"""What the models of all families are made of: what draws tokens, and a picture tokenizer."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from ..grid import Grid
from ..images import Frame

LOGIT_COPIES = 6
"""Arrays of the size of a pass's logits that are held at once."""
VQ_MAPS = 4
"""Feature maps at full size that the VQ holds at once in its widest place."""


class PictureModel(nn.Module):
    """A backbone whose `config` names its grid, its image size and the sizes of its VQ."""

    config: Any
    vq: Any

    @property
    def drawing_parts(self) -> list[nn.Module]:
        """What draws tokens: all but the picture tokenizer."""
        return [part for part in self.children() if part is not self.vq]

    @property
    def frame(self) -> Frame:
        """How pictures are prepared for the picture tokenizer."""
        return Frame(*self.config.image_size)

    @property
    def grid(self) -> Grid:
        return self.config.grid

    @property
    def vocab(self) -> int:
        """Number of image codes."""
        return self.config.vq.codebook_size

    @property
    def code_dim(self) -> int:
        """Numbers of a code's vector."""
        return self.config.vq.codebook_dim

    def pictures_in(self, codes: Tensor) -> int:
        """How many pictures of the model's size take up as much as codes [..., height, width] of
        one picture, rounded up: an outpainted one is larger."""
        return math.ceil(codes.shape[-2] * codes.shape[-1] / self.grid.size)

    def picture_bytes(self, count: int = 1) -> int:
        """About the memory that `count` pictures at once take on their way through the VQ."""
        height, width = self.config.image_size
        channels = max(self.config.vq.encoder_widths[0], self.config.vq.decoder_widths[0])
        return 4 * VQ_MAPS * count * height * width * channels  # float32
