"""FAiD: an adapter that blends retrieved patches into the decoder's hidden states."""

from ..settings import AdapterConfig, Semantics
from .adapter import FaidAdapter, assemble
from .blender import FoldedBlender, PatchBlender
from .hook import BlendPass, FaidHook, slot_table
from .passes import Blending, Faid, forced_states, whole_picture

__all__ = [
    "AdapterConfig",
    "BlendPass",
    "Blending",
    "Faid",
    "FaidAdapter",
    "FaidHook",
    "FoldedBlender",
    "PatchBlender",
    "Semantics",
    "assemble",
    "forced_states",
    "slot_table",
    "whole_picture",
]
