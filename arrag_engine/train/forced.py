"""One pass over prompts and whole pictures, as each family of models makes it."""

from __future__ import annotations

from torch import Tensor

from ..faid import FaidAdapter, FaidHook, forced_states, masked_picture, whole_picture
from ..models.families import ImageModel
from ..models.hooks import DrawingHook
from ..models.showo.model import ShowO
from ..settings import Semantics
from .data import Batch


def picture_hook(
    base: ImageModel,
    adapter: FaidAdapter,
    batch: Batch,
    semantics: Semantics,
    checkpointing: bool = False,
) -> FaidHook:
    """The adapter in a pass over a batch."""
    if base.order.raster:
        length = batch.text.shape[1]
        given = (batch.codes, batch.active, length, semantics, batch.blended, checkpointing)
        return whole_picture(base, adapter, *given)
    active = batch.active & (batch.blended > 0)[:, None]
    first = first_input(base, batch)
    return masked_picture(base, adapter, batch.codes, active, batch.known, first, checkpointing)


def first_input(base: ImageModel, batch: Batch) -> int:
    """The input that predicts the first token: in raster order the prompt's last id, else the
    token's own."""
    length = batch.text.shape[1]
    return length + base.picture_start if isinstance(base, ShowO) else length - 1


def sequence_states(base: ImageModel, batch: Batch, hook: DrawingHook | None = None) -> Tensor:
    """Hidden states [B, L, hidden] of prompts and pictures."""
    if isinstance(base, ShowO):
        return base.whole_states(batch.text, batch.tokens, batch.known, hook)
    return forced_states(base, batch.text, batch.tokens[:, :-1], hook, batch.padding)


def predicting(base: ImageModel, batch: Batch, states: Tensor) -> Tensor:
    """Those [B, N, hidden] of states [B, L, hidden] that predict the tokens."""
    first = first_input(base, batch)
    return states[:, first : first + batch.tokens.shape[1]]


def forced_logits(base: ImageModel, batch: Batch, hook: DrawingHook | None = None) -> Tensor:
    """Logits [B, N, codes] of the pictures' tokens, each given what stands before it, or what is
    known."""
    return base.predict(predicting(base, batch, sequence_states(base, batch, hook)), hook)
