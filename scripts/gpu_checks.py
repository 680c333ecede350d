"""What the checks of `check_gpu` are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Check:
    """One comparison."""

    name: str
    ok: bool
    said: str

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'FAILED':<7} {self.name}: {self.said}"


Checks = Iterator[Check]


def equal(name: str, found: Tensor, wanted: Tensor) -> Check:
    """Whether pictures' tokens [B, N] are equal."""
    return Check(name, torch.equal(found, wanted), parting(found, wanted))


def parting(found: Tensor, wanted: Tensor) -> str:
    """How many pictures [B, N] differ, and how many of the tokens stand before they part."""
    same = (found == wanted).int().cummin(dim=1).values.bool()
    parted = int((~same[:, -1]).sum())
    share = f"{same.float().mean():.1%} of the tokens stand before they part"
    return f"{parted} of {len(found)} pictures of {found.shape[1]} tokens differ" + (
        f", {share}" if parted else ""
    )
