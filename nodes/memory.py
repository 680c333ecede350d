"""A loaded model under ComfyUI's memory management."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import nn

from ..arrag_engine.checkpoints import (
    DTYPES,
    Checkpoint,
    load_checkpoint,
    resolve_dtype,
    resolve_storage,
)
from ..arrag_engine.checkpoints.adapter import load_adapter
from ..arrag_engine.decode import GraphRecorder, KeptPasses
from ..arrag_engine.faid import FaidAdapter
from ..arrag_engine.models import ops as engine_ops
from ..arrag_engine.models.families import ImageModel
from ..arrag_engine.retrieval import Places
from .layers import CastingOps, plain_layers


@cache
def watched(kind: type) -> type:
    """A kind of patcher that drops what drawings left on the GPU when it moves weights."""

    class Watched(kind):
        kept: KeptPasses | None = None

        def detach(self, unpatch_all: bool = True) -> Any:
            if unpatch_all:  # else the weights stay: a loaded model is detached from itself
                self._drop()
            return super().detach(unpatch_all)

        def partially_unload(self, *args: Any, **kwargs: Any) -> Any:
            self._drop()
            return super().partially_unload(*args, **kwargs)

        def _drop(self) -> None:
            if self.kept is not None:
                self.kept.clear()

    return Watched


class Holder(nn.Module):
    """What ComfyUI moves and puts its own attributes on; the engine's modules stay clean."""

    def __init__(self, held: nn.Module) -> None:
        super().__init__()
        self.held = held


def manage(module: nn.Module, kept: KeptPasses | None = None) -> comfy.model_patcher.ModelPatcher:
    """Leave it to ComfyUI where a module's weights lie; `kept` is cleared when they are moved.

    ComfyUI 0.16 and newer rebind CoreModelPatcher at their start, so it is looked up at every call.
    Their dynamic memory moves weights whenever it likes and calls nothing: no pass is recorded.
    """
    patchers = comfy.model_patcher
    kind = getattr(patchers, "CoreModelPatcher", patchers.ModelPatcher)
    if kept is not None and "Dynamic" in kind.__name__:
        kept.recorder = None
    patcher = watched(kind)(
        Holder(module),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    patcher.kept = kept
    return patcher


class ManagedModel:
    """A checkpoint whose weights ComfyUI loads, offloads and frees.

    What draws tokens, the VQ, and a FAiD adapter are managed beside each other: none needs the
    others on the GPU all the time.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.codebook = checkpoint.model.vq.codebook(torch.device("cpu"))
        """The VQ's unit rows [codes, dim]; taken now, while the weights lie on the CPU."""
        self.device = comfy.model_management.get_torch_device()
        self.passes = KeptPasses(GraphRecorder(plain_layers))
        """What drawings on a GPU leave for the next ones, with the base or an adapter of it."""
        self.patcher = manage(nn.ModuleList(checkpoint.model.drawing_parts), self.passes)
        self.vq_patcher = manage(checkpoint.model.vq)
        self.adapter_patcher = None
        if checkpoint.faid is not None:
            self.adapter_patcher = manage(checkpoint.faid, self.passes)

    @property
    def model(self) -> ImageModel:
        return self.checkpoint.model

    def with_adapter(self, adapter: FaidAdapter) -> ManagedModel:
        """The same base, managed once, with this adapter in place of any other."""
        other = copy.copy(self)
        other.checkpoint = replace(self.checkpoint, faid=adapter)
        other.adapter_patcher = manage(adapter, self.passes)
        return other

    def search_places(self) -> Places:
        """Where the indexes of a drawing are searched: on a GPU, if they fit beside the model."""
        if self.device.type != "cuda":
            return Places(self.device, 0)
        patchers = [self.patcher, self.vq_patcher, self.adapter_patcher]
        weights = missing([patcher for patcher in patchers if patcher is not None])
        return Places(self.device, comfy.model_management.get_free_memory(self.device) - weights)

    def to_draw(self, working_bytes: int, with_adapter: bool, previews: bool) -> bool:
        """Bring what draws tokens to the device, leaving memory to work.

        Args:
            previews: Whether pictures are to be decoded meanwhile.

        Returns:
            Whether they can be: the device may be too small for that.
        """
        patchers = [self.patcher]
        if with_adapter and self.adapter_patcher is not None:
            patchers.append(self.adapter_patcher)
        seeing = working_bytes + self.model.picture_bytes()
        previews = previews and self._room([*patchers, self.vq_patcher], seeing)
        if previews:
            patchers, working_bytes = [*patchers, self.vq_patcher], seeing
        comfy.model_management.load_models_gpu(patchers, memory_required=working_bytes)
        return previews

    def to_decode(self, pictures: int = 1) -> torch.device:
        """Bring the VQ to the device, leaving memory for pictures at once; returns the device.
        What has drawn tokens stays there if that fits."""
        needed, patchers = self.model.picture_bytes(pictures), [self.vq_patcher]
        drew = [p for p in (self.patcher, self.adapter_patcher) if p is not None]
        drew = [p for p in drew if p.loaded_size() > 0]
        if self._room([*patchers, *drew], needed):
            patchers += drew
        comfy.model_management.load_models_gpu(patchers, memory_required=needed)
        return self.device

    def _room(self, patchers: Sequence[Any], working_bytes: int) -> bool:
        """Whether the device can hold weights and so many bytes at once. Kept passes make room if
        it cannot with them."""
        if fits(patchers, working_bytes, self.device):
            return True
        self.passes.clear()
        return fits(patchers, working_bytes, self.device)


def missing(patchers: Sequence[Any]) -> int:
    """Bytes of weights that do not lie on the device yet."""
    return sum(patcher.model_size() - patcher.loaded_size() for patcher in patchers)


def fits(patchers: Sequence[Any], working_bytes: int, device: torch.device) -> bool:
    """Whether a device has memory for weights and work, once ComfyUI has unloaded all others."""
    if device.type == "cpu":
        return True
    ours = {id(patcher) for patcher in patchers}
    loaded = [p for p in comfy.model_management.loaded_models() if p is not None]
    others = [p for p in loaded if id(p) not in ours and p.load_device == device]
    free = comfy.model_management.get_free_memory(device) + sum(p.loaded_size() for p in others)
    return free >= missing(patchers) + working_bytes


def load_managed(path: Path, dtype: str, progress: Callable[[int, int], None]) -> ManagedModel:
    """Load a checkpoint for ComfyUI's device.

    On a GPU the layers are ComfyUI's casting ones, so that those which do not fit may stay on the
    CPU; on the CPU nothing needs casting, and the engine's own are faster.

    Raises:
        InputError: The checkpoint cannot be used.
    """
    device = comfy.model_management.get_torch_device()
    computed, stored = choose_dtype(dtype, device), resolve_storage(dtype)
    checkpoint = load_checkpoint(path, computed, choose_ops(device), progress, device, stored)
    if device.type == "cpu":
        engine_ops.pack_linears(checkpoint.model)
        if checkpoint.faid is not None:
            engine_ops.pack_linears(checkpoint.faid)
    return ManagedModel(checkpoint)


def load_managed_adapter(
    path: Path, base: ManagedModel, progress: Callable[[int, int], None]
) -> ManagedModel:
    """The base with the adapter of a file.

    Raises:
        InputError: The adapter cannot be used, or not with this base.
    """
    dtype, ops = base.model.dtype, choose_ops(base.device)
    adapter = load_adapter(path, base.checkpoint, dtype, ops, progress, base.device)
    if base.device.type == "cpu":
        engine_ops.pack_linears(adapter)
    return base.with_adapter(adapter)


def choose_ops(device: torch.device) -> Any:
    """The layers that models are built from."""
    return engine_ops if device.type == "cpu" else CastingOps


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """What the decoder computes in. Where the name leaves that to the device, ComfyUI
    chooses for its GPU."""
    resolved = resolve_dtype(name, device)
    if name in DTYPES or device.type == "cpu":
        return resolved
    if comfy.model_management.should_use_bf16(device):
        return torch.bfloat16
    return torch.float16 if comfy.model_management.should_use_fp16(device) else torch.float32
