"""Checks of Show-o against golden numbers."""

from .drawing import check_t2i
from .fixture import ShowOFixture
from .parts import check_preprocess, check_prompts, check_vanilla, check_vq
from .retrieval import check_daid, check_db

__all__ = [
    "ShowOFixture",
    "check_daid",
    "check_db",
    "check_preprocess",
    "check_prompts",
    "check_t2i",
    "check_vanilla",
    "check_vq",
]
