"""Numbers that the host sends to a device before every pass, in one copy."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


class Packet:
    """Arrays of fixed shape on the host, and their twins on the device, which never move."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device
    ) -> None:
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        pinned = device.type == "cuda"
        self._host = torch.zeros(sum(sizes.values()), dtype=dtype, pin_memory=pinned)
        self._device = torch.zeros_like(self._host, device=device)
        self.host: dict[str, np.ndarray] = {}
        """What to write."""
        self.device: dict[str, Tensor] = {}
        """What a pass reads, after `send`."""
        first = 0
        for name, shape in shapes.items():
            part = slice(first, first + sizes[name])
            self.host[name] = self._host[part].view(shape).numpy()
            self.device[name] = self._device[part].view(shape)
            first += sizes[name]

    def send(self) -> None:
        self._device.copy_(self._host, non_blocking=True)
