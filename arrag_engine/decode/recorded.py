"""What passes of fixed shape have in common: on a GPU they are recorded once, repeated, and kept
for the next drawing."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import ExitStack
from typing import Any, TypeVar, cast

import torch
from torch import nn

from ..faid import FaidAdapter
from ..models.base import Backbone
from .graphs import GraphRecorder, Recording
from .recipe import Recipe

STEP = 64
"""Ids that fit a pass are a multiple of it, so that prompts of like length share one."""


class RecordedPass:
    """A pass that computes from buffers to buffers, which never move.

    Args:
        shape: All that two drawings must have in common to use the same pass; it has a `device`.
    """

    def __init__(self, model: Backbone, shape: Any) -> None:
        self.model, self.shape = model, shape
        self.adapter: FaidAdapter | None = None
        self.recording: Recording | None = None
        self.failed = False
        """Whether a recording failed, which would fail again."""

    def compute(self) -> None:
        """The arithmetic of a pass. Nothing in it waits for the device or depends on a number of
        the host, so that a graph may repeat it."""
        raise NotImplementedError

    @property
    def captured(self) -> bool:
        """Whether a recorded pass is repeated."""
        return self.recording is not None

    def _modules(self) -> list[nn.Module]:
        """The modules whose weights a pass reads: all but the picture tokenizer."""
        parts = self.model.children() if isinstance(self.model, nn.Module) else []
        adapter = [] if self.adapter is None else [self.adapter]
        return [part for part in parts if part is not self.model.vq] + adapter

    def record(self, recorder: GraphRecorder) -> str | None:
        """Record the pass if possible. Returns a note if recording failed, else None.

        It overwrites the buffers: call it before `begin`.
        """
        if self.recording is not None and not self.recording.holds():
            self.recording = None
        modules = self._modules()
        done = self.failed or self.recording is not None
        if done or not recorder.can(modules, self.shape.device):
            return None
        try:
            with ExitStack() as stack:
                for module in modules:
                    stack.enter_context(recorder.plain(module))
                replay = recorder.record(self.compute, self.shape.device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.failed = True
            first = error.__context__ or error  # ending a failed recording fails too
            reason = str(first).partition("\n")[0]
            return f"The pass could not be recorded as a CUDA graph, so drawing is slower: {reason}"
        self.recording = Recording(replay, modules)
        return None

    def repeat(self) -> None:
        """Run the pass, recorded or not."""
        if self.recording is not None and not self.recording.holds():
            self.recording = None  # the weights were moved while drawing
        if self.recording is None:
            self.compute()
        else:
            self.recording.replay()


P = TypeVar("P", bound=RecordedPass)
Make = Callable[[Any, Recipe, Any], P]
"""Makes a pass of a model, a recipe and a shape."""


class KeptPasses:
    """Passes that former drawings left, for the next ones of the same shape. Whoever manages the
    model's memory owns this object and clears it when the weights are moved.

    A pass serves one drawing at a time: a drawing takes it out and gives it back.
    """

    MOST = 2

    def __init__(self, recorder: GraphRecorder | None = None) -> None:
        """
        Args:
            recorder: Records passes as CUDA graphs; without one, every pass runs as it is.
        """
        self.recorder = recorder
        self._kept: list[RecordedPass] = []

    def find(self, make: Make[P], model: Backbone, recipe: Recipe, shape: Hashable) -> P:
        """The pass of a shape, kept from before or new; the one used longest ago makes room.

        Args:
            make: The class of the pass; each has a class of shapes of its own.
        """
        adapter = None if recipe.adapter is None else recipe.adapter.adapter
        for one in self._kept:
            if one.shape == shape and one.model is model and one.adapter is adapter:
                self._kept.remove(one)
                break
        else:
            self._kept = self._kept[-self.MOST + 1 :]  # before memory is taken for another
            one = self._make(make, model, recipe, shape)
        self._kept.append(one)
        return cast(P, one)

    def _make(self, make: Make[P], model: Backbone, recipe: Recipe, shape: Hashable) -> P:
        try:
            return make(model, recipe, shape)
        except torch.OutOfMemoryError:
            self._kept.clear()
            return make(model, recipe, shape)

    def take(self, make: Make[P], model: Backbone, recipe: Recipe, shape: Hashable) -> P:
        """As `find`, for one drawing alone, which has to give it back."""
        one = self.find(make, model, recipe, shape)
        self._kept.remove(one)
        return one

    def give_back(self, one: RecordedPass) -> None:
        self._kept = [*self._kept, one][-self.MOST :]

    def clear(self) -> None:
        """Free all buffers."""
        self._kept.clear()

    def make_room(self, device: torch.device, needed: int) -> None:
        """Free all buffers if the device has less memory left than is needed for other work."""
        if self._kept and free_bytes(device) < needed:
            self.clear()

    def __len__(self) -> int:
        return len(self._kept)


def free_bytes(device: torch.device) -> float:
    """Memory of a GPU that this process can take, with what its allocator holds unused."""
    if device.type != "cuda":
        return float("inf")
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
