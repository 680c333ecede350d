"""The patch index: real patches to look up while drawing, and the one file it is kept in."""

from .file import is_index, load_index, read_header, save_index
from .keys import KEY_SPACES, KeySpec
from .patch_index import Neighbors, PatchIndex, Source

__all__ = [
    "KEY_SPACES",
    "KeySpec",
    "Neighbors",
    "PatchIndex",
    "Source",
    "is_index",
    "load_index",
    "read_header",
    "save_index",
]
