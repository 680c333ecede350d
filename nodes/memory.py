"""A loaded model under ComfyUI's memory management."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from torch import nn

from ..arrag_engine import ops as engine_ops
from ..arrag_engine.checkpoint import Checkpoint, load_checkpoint, resolve_dtype
from ..arrag_engine.janus import JanusPro


class Holder(nn.Module):
    """What ComfyUI moves and puts its own attributes on; the engine's model stays clean."""

    def __init__(self, model: JanusPro) -> None:
        super().__init__()
        self.model = model


class ManagedModel:
    """A checkpoint whose weights ComfyUI loads, offloads and frees."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.codebook = checkpoint.model.vq.codebook(torch.device("cpu"))
        """The VQ's unit rows [codes, dim]; taken now, while the weights lie on the CPU."""
        self.device = comfy.model_management.get_torch_device()
        self.patcher = comfy.model_patcher.ModelPatcher(
            Holder(checkpoint.model),
            load_device=self.device,
            offload_device=comfy.model_management.unet_offload_device(),
        )

    @property
    def model(self) -> JanusPro:
        return self.checkpoint.model

    def to_device(self, working_bytes: int = 0) -> torch.device:
        """Bring the weights to the device, leaving room to work; say which device that is."""
        comfy.model_management.load_models_gpu([self.patcher], memory_required=working_bytes)
        return self.device


def load_managed(path: Path, dtype: str, progress: Callable[[int, int], None]) -> ManagedModel:
    """Load a checkpoint for ComfyUI's device.

    On a GPU the layers are ComfyUI's casting ones, so that those which do not fit may stay on the
    CPU; on the CPU nothing needs casting, and the engine's own are faster.

    Raises:
        InputError: The checkpoint cannot be used.
    """
    device = comfy.model_management.get_torch_device()
    ops = engine_ops if device.type == "cpu" else comfy.ops.manual_cast
    return ManagedModel(load_checkpoint(path, choose_dtype(dtype, device), ops, progress))


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The decoder's dtype; for `auto` ComfyUI knows its GPUs better than the engine does."""
    if name != "auto" or device.type == "cpu":
        return resolve_dtype(name, device)
    if comfy.model_management.should_use_bf16(device):
        return torch.bfloat16
    return torch.float16 if comfy.model_management.should_use_fp16(device) else torch.float32
