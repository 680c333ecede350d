"""A pass recorded as a CUDA graph, which the GPU repeats without Python.

A graph holds addresses: those of buffers, which never move, and those of the weights, which whoever
manages memory may move at any time. So addresses are compared before every repetition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Protocol

import torch
from torch import Tensor, nn

WARM_UPS = 2
"""Runs before the recording, in which libraries choose and load their kernels."""

NOWHERE = torch.empty(0)
"""Lies where a weight lies that is not there."""

Plain = Callable[[nn.Module], AbstractContextManager[None]]
"""While entered, the layers of a module do nothing but compute: a recording must not ask for
interrupts or move weights."""


class Replay(Protocol):
    """What a recording returns."""

    def replay(self) -> None: ...


class GraphRecorder:
    """Records passes on an NVIDIA GPU."""

    def __init__(self, plain: Plain = lambda module: nullcontext()) -> None:
        self.plain = plain
        self._aside: dict[torch.device, torch.cuda.Stream] = {}
        """One stream each, kept: libraries hold memory for every stream that they have met."""

    def can(self, modules: Sequence[nn.Module], device: torch.device) -> bool:
        """Whether these modules can be recorded: all weights lie on the GPU."""
        return device.type == "cuda" and all(
            weight.device.type == "cuda" for module in modules for weight in module.parameters()
        )

    def record(self, compute: Callable[[], None], device: torch.device) -> Replay:
        """The work of `compute`, recorded.

        Raises:
            RuntimeError: Something in it cannot be recorded.
        """
        if device not in self._aside:
            self._aside[device] = torch.cuda.Stream(device)
        aside, here = self._aside[device], torch.cuda.current_stream(device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            # Whatever libraries make and keep is made now: with CUDA's own allocator
            # (cudaMallocAsync), memory first taken in a recording exists in its repetitions only.
            for _ in range(WARM_UPS):
                compute()
        here.wait_stream(aside)
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        # Other threads (a preview, a browser's request) may use the GPU meanwhile.
        recording = torch.cuda.graph(graph, pool, aside, capture_error_mode="thread_local")
        try:
            with torch.cuda.stream(here), recording:  # the outer one goes back after a failure
                compute()
        except RuntimeError:
            end_allocating(device, pool)
            end_random(device)
            raise
        return graph


def end_allocating(device: torch.device, pool: tuple[int, int]) -> None:
    """Tell PyTorch's allocator that a failed recording is over, which PyTorch itself leaves out.

    With cudaMallocAsync it would never again free memory, nor allow another recording.
    """
    with suppress(AttributeError, RuntimeError, TypeError):  # private; or it failed after its end
        torch._C._cuda_endAllocateToPool(index_of(device), pool)


def end_random(device: torch.device) -> None:
    """Allow random numbers on the GPU after a failed recording: PyTorch's generator there would
    count as recorded for ever, and refuse. A copy of its state does not."""
    with suppress(AttributeError, IndexError, RuntimeError):
        generator = torch.cuda.default_generators[index_of(device)]
        generator.graphsafe_set_state(generator.clone_state())


def index_of(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


class Recording:
    """A recorded pass, as long as the weights stay where they are."""

    def __init__(self, replay: Replay, modules: Sequence[nn.Module]) -> None:
        self._replay = replay
        tables = [part._parameters for module in modules for part in module.modules()]
        every = ((table, name) for table in tables for name in table)
        self._places = [(table, name) for table, name in every if table[name] is not None]
        self._addresses = self._now()

    def _now(self) -> list[int]:
        # Asked before every pass: hundreds of calls, so without a Python function around each.
        weights = [
            NOWHERE if (weight := table.get(name)) is None else weight
            for table, name in self._places
        ]
        return list(map(Tensor.data_ptr, weights))

    def holds(self) -> bool:
        """Whether all weights lie where they lay when the pass was recorded."""
        return self._now() == self._addresses

    def replay(self) -> None:
        self._replay.replay()
