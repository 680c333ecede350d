"""Checkpoints as models that draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bounds import shown
from ..decode import GraphRecorder, KeptPasses
from ..errors import InputError
from ..faid import FaidAdapter, assemble
from ..models import ops as default_ops
from ..models.janus.layouts import section
from ..models.janus.model import JanusPro
from ..models.janus.prompt import MAX_TOKENS, PromptEncoder
from ..models.packed import HostEmbedding, PackedLinear, pack
from ..models.pixels import to_uint8
from ..settings import Sampling
from .config import SAMPLING_NAMES
from .fingerprint import read_fingerprint
from .opening import Opened, open_checkpoint
from .tokenizer import read_tokenizer


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model and what belongs to it."""

    model: JanusPro
    path: Path
    config: dict[str, Any]
    """The checkpoint's own config.json."""
    tokenizer: str | Path
    """tokenizer.json as text, or the path where it is expected."""
    fingerprint: str
    """Of the weights, whatever their dtype and layout: adapters store it."""
    faid: FaidAdapter | None = None
    """The blenders that came with the weights."""
    passes: KeptPasses = field(default_factory=lambda: KeptPasses(GraphRecorder()))
    """What drawings on a GPU leave for the next ones."""

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Pictures [B, H, W, 3] uint8, on the CPU, of codes [B, height, width]; one after the other
        to save memory. Passes that are kept give way if the device has no room for that."""
        device = self.model.device
        self.passes.make_room(device, self.model.picture_bytes())
        pixels = [to_uint8(self.model.vq.decode(one.to(device))).cpu() for one in codes.split(1)]
        return torch.cat(pixels)

    @property
    def name(self) -> str:
        """The name of the model in messages."""
        return self.path.stem if self.path.is_file() else self.path.name

    @property
    def sampling(self) -> Sampling:
        """The guidance and temperature of the model's config; else the defaults.

        Raises:
            InputError: A value in the config is not a valid number.
        """
        stated = section(self.config, "generation_config")
        numbers = {ours: stated[name] for name, ours in SAMPLING_NAMES.items() if name in stated}
        if wrong := {k: v for k, v in numbers.items() if type(v) not in (int, float)}:
            raise InputError(
                f"the config of {self.name} recommends {shown(wrong)}, which are not numbers; "
                "set guidance and temperature yourself"
            )
        return Sampling(**numbers)

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """Opened when text is first encoded: fixtures come without a tokenizer."""
        return self._prompt_encoder

    @cached_property
    def _prompt_encoder(self) -> PromptEncoder:
        config = self.model.config
        room = config.llama.max_positions - config.grid.size
        text = read_tokenizer(self.tokenizer)
        return PromptEncoder(text, min(MAX_TOKENS, room), config.llama.vocab_size)


def load_checkpoint(
    path: Path,
    dtype: torch.dtype,
    ops: Any = default_ops,
    progress: Callable[[int, int], None] | None = None,
    fold_on: torch.device | None = None,
    storage: torch.dtype | None = None,
) -> Checkpoint:
    """Load a drawing model from a folder as downloaded or from one file.

    Args:
        dtype: What the decoder computes in; the VQ tokenizer is float32 always.
        ops: Layers to build from.
        progress: Called with (tensors read, tensors in all), then with (blenders folded, in all).
        fold_on: The device that folds blenders that come with the weights.
        storage: int8 or float8_e4m3fn: what the decoder's linear layers store their weights in,
            where that is not `dtype`.

    Raises:
        InputError: As `open_checkpoint`.
    """
    opened = open_checkpoint(path)
    model = read_model(opened, dtype, ops, progress, storage)
    return Checkpoint(
        model,
        Path(path),
        opened.config,
        opened.tokenizer,
        read_fingerprint(opened),
        read_faid(opened, dtype, ops, progress, fold_on),
    )


def read_model(
    opened: Opened,
    dtype: torch.dtype,
    ops: Any = default_ops,
    progress: Callable[[int, int], None] | None = None,
    storage: torch.dtype | None = None,
) -> JanusPro:
    """The model of an opened checkpoint.

    Tensors are read and, where need be, converted one at a time. The understanding branch is never
    read.
    """
    with torch.device("meta"):
        model = JanusPro(opened.janus, ops, storage).eval()
    state: dict[str, Tensor] = {}
    for done, (name, ours) in enumerate(opened.names.items(), start=1):
        prefix, _, kind = ours.rpartition(".")
        layer = model.get_submodule(prefix)
        if isinstance(layer, PackedLinear) and kind == "weight":
            storage = layer.weight.dtype
            state[ours], state[f"{prefix}.scale"] = pack(opened.weights.read(name), storage)
        elif isinstance(layer, HostEmbedding):  # in the file's precision: its rows are cast
            state[ours] = opened.weights.read(name)
        else:
            wanted = torch.float32 if ours.startswith("vq.") else dtype
            state[ours] = opened.weights.read(name, dtype=wanted)
        if progress is not None:
            progress(done, len(opened.names))
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False)


def read_faid(
    opened: Opened,
    dtype: torch.dtype,
    ops: Any = default_ops,
    progress: Callable[[int, int], None] | None = None,
    fold_on: torch.device | None = None,
) -> FaidAdapter | None:
    """The blenders of an opened checkpoint, folded for drawing; None when it has none."""
    if opened.blenders is None:
        return None
    files = {ours: name for name, ours in opened.blender_names.items()}

    def read(name: str) -> Tensor:
        return opened.weights.read(files[name])

    return assemble(opened.janus, opened.blenders, read, dtype, ops, progress, fold_on)
