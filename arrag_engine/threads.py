"""How many CPU threads a drawing uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SMALL = 50_000_000
"""Weights up to which a second thread gains nothing: it waits at every layer, and on busy cores it
waits many times longer than it computes."""


@contextmanager
def few_threads(weights: Iterable[Tensor], device: torch.device) -> Iterator[None]:
    """Compute on one thread where a model of few weights draws on the CPU; give the others back
    after it."""
    count = sum(weight.numel() for weight in weights)
    before = torch.get_num_threads()
    if device.type != "cpu" or count > SMALL or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
