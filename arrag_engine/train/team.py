"""The processes that train together: one alone, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ..errors import InputError


@dataclass(frozen=True)
class Team:
    """This process's place among those that train the same weights."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def from_leader(self, value: Any) -> Any:
        """The leader's value; the others' is ignored."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0)
        return values[0]


@contextmanager
def join_team(device: torch.device) -> Iterator[Team]:
    """The team of this process while the block runs.

    Raises:
        InputError: torchrun's variables are set and are not numbers.
    """
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        yield Team()
        return
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except ValueError as error:
        raise InputError("RANK and WORLD_SIZE are not numbers; start with torchrun") from error
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=size)
    try:
        yield Team(rank, size)
    finally:
        dist.destroy_process_group()
