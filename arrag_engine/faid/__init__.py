"""FAiD: an adapter that blends retrieved patches into the decoder's hidden states."""

from ..settings import AdapterConfig, Semantics
from .adapter import FaidAdapter, assemble, order_for, order_name
from .blender import FoldedBlender, PatchBlender
from .hook import BlendPass, FaidHook, MaskedPass, slot_table
from .passes import (
    Blending,
    Faid,
    MaskedBlending,
    forced_states,
    masked_picture,
    whole_picture,
)

__all__ = [
    "AdapterConfig",
    "BlendPass",
    "Blending",
    "Faid",
    "FaidAdapter",
    "FaidHook",
    "FoldedBlender",
    "MaskedBlending",
    "MaskedPass",
    "PatchBlender",
    "Semantics",
    "assemble",
    "forced_states",
    "masked_picture",
    "order_for",
    "order_name",
    "slot_table",
    "whole_picture",
]
