"""What passes of fixed shape have in common: on a GPU they are recorded once and repeated."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ..faid import FaidAdapter
from ..models.base import Backbone
from .graphs import GraphRecorder, Recording


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
