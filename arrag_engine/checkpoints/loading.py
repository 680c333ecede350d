"""Checkpoints as models that draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..bounds import shown
from ..decode import GraphRecorder, KeptPasses
from ..errors import InputError
from ..faid import FaidAdapter, assemble
from ..models import ops as default_ops
from ..models.base import PromptEncoder
from ..models.families import ImageModel, Sizes
from ..models.janus.model import JanusPro
from ..models.janus.prompt import MAX_TOKENS
from ..models.janus.prompt import PromptEncoder as JanusEncoder
from ..models.layouts import section
from ..models.packed import HostEmbedding, PackedLinear, pack
from ..models.pixels import to_uint8
from ..models.showo.model import ShowO, ShowOConfig
from ..models.showo.prompt import PromptEncoder as ShowOEncoder
from ..settings import Sampling
from .config import SAMPLING_NAMES
from .fingerprint import read_fingerprint
from .opening import TEXT_MODEL, Opened, open_checkpoint
from .tokenizer import read_tokenizer

FP32 = torch.float32
SHOW_O, SHOW_O_LARGE = Sampling(cfg=2.75), Sampling(cfg=6.0)
"""The sampling of the official examples of 256 and of 512 pixels; there the guidance is called 1.75
and 5, one less."""
LARGE = 256
"""Tokens up to which a picture is one of 256 pixels, or smaller."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model and what belongs to it."""

    model: ImageModel
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
        self.passes.make_room(device, self.model.picture_bytes(self.model.pictures_in(codes)))
        pixels = [to_uint8(self.model.vq.decode(one.to(device))).cpu() for one in codes.split(1)]
        return torch.cat(pixels)

    @property
    def name(self) -> str:
        """The name of the model in messages."""
        return self.path.stem if self.path.is_file() else self.path.name

    @property
    def janus(self) -> JanusPro:
        """The model, for what only a Janus-Pro can do.

        Raises:
            InputError: It is another model.
        """
        if not isinstance(self.model, JanusPro):
            raise InputError(
                f"{self.name} is a Show-o model, for which there is no calibration; choose a "
                "Janus-Pro model"
            )
        return self.model

    @property
    def janus_encoder(self) -> JanusEncoder:
        """The prompt encoder, for what only a Janus-Pro can do.

        Raises:
            InputError: It is another model.
        """
        _ = self.janus
        return cast(JanusEncoder, self.prompt_encoder)

    @property
    def sampling(self) -> Sampling:
        """The guidance and temperature of the model's config; else the family's defaults.

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
        showo = SHOW_O_LARGE if self.model.grid.size > LARGE else SHOW_O
        return replace(Sampling() if isinstance(self.model, JanusPro) else showo, **numbers)

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """Opened when text is first encoded: fixtures come without a tokenizer."""
        return self._prompt_encoder

    @cached_property
    def _prompt_encoder(self) -> PromptEncoder:
        config = self.model.config
        if isinstance(config, ShowOConfig):
            text = read_tokenizer(self.tokenizer, TEXT_MODEL)
            return ShowOEncoder(text, config.vocabulary, config.max_text)
        room = config.llama.max_positions - config.grid.size
        text = read_tokenizer(self.tokenizer)
        return JanusEncoder(text, min(MAX_TOKENS, room), config.llama.vocab_size)


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
) -> ImageModel:
    """The model of an opened checkpoint.

    Tensors are read and, where need be, converted one at a time. The understanding branch is never
    read.
    """
    with torch.device("meta"):
        model = build_model(opened.sizes, ops, storage).eval()
    state: dict[str, Tensor] = {}
    for done, (name, ours) in enumerate(opened.names.items(), start=1):
        prefix, _, kind = ours.rpartition(".")
        layer = model.get_submodule(prefix)
        if isinstance(layer, PackedLinear) and kind == "weight":
            storage = layer.weight.dtype
            state[ours], state[f"{prefix}.scale"] = pack(read_part(opened, name, None), storage)
        elif isinstance(layer, HostEmbedding):  # in the file's precision: its rows are cast
            state[ours] = read_part(opened, name, None)
        else:
            state[ours] = read_part(opened, name, FP32 if ours.startswith("vq.") else dtype)
        if progress is not None:
            progress(done, len(opened.names))
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False)


def build_model(sizes: Sizes, ops: Any, storage: torch.dtype | None) -> ImageModel:
    """An empty model of these sizes."""
    if isinstance(sizes, ShowOConfig):
        return ShowO(sizes, ops, storage)
    return JanusPro(sizes, ops, storage)


def read_part(opened: Opened, name: str, dtype: torch.dtype | None) -> Tensor:
    """What drawing needs of a tensor of the file: all of it, or some rows."""
    rows = opened.rows.get(opened.names[name])
    tensor = opened.weights.read(name, dtype=dtype)
    return tensor if rows is None else tensor[rows].clone()


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
