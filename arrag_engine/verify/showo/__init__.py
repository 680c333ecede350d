"""Checks of Show-o against golden numbers."""

from .drawing import check_t2i
from .fixture import ShowOFixture
from .parts import check_preprocess, check_prompts, check_vanilla, check_vq

__all__ = [
    "ShowOFixture",
    "check_preprocess",
    "check_prompts",
    "check_t2i",
    "check_vanilla",
    "check_vq",
]
