"""Pictures and painted masks as Show-o's programs prepare them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...images import square

BICUBIC = Image.Resampling.BICUBIC


def to_unit(image: Image.Image) -> Tensor:
    """Pixels [channels, H, W] float32 in [0, 1]."""
    pixels = torch.from_numpy(np.array(image))
    return pixels.view(image.height, image.width, -1).permute(2, 0, 1).float() / 255


def to_pixels(image: Image.Image) -> Tensor:
    """Pixels [3, H, W] float32 in [-1, 1] of an RGB picture."""
    return (to_unit(image) - 0.5) / 0.5


def mask_shares(mask: Tensor, width: int) -> Tensor:
    """How white each cell of a width x width grid is [width, width], of a mask [1, H, W] in [0, 1].

    Bicubic around each cell's centre and not averaged over the cell, so that values leave 0 to 1.
    """
    return F.interpolate(mask[None], size=(width, width), mode="bicubic")[0, 0]


def masked_cells(mask: Image.Image, side: int, width: int) -> Tensor:
    """Mask [width, width] of the cells that the official programs draw anew, where a painted mask
    (white) is mostly so. Small spots between the middles of cells are lost, so drawings here take
    `editing.masked_positions` for all families.
    """
    return mask_shares(to_unit(square(mask.convert("L"), side, BICUBIC)), width) >= 0.5
