"""Indexes from pictures: a folder of them, or a batch in memory."""

from .building import (
    BuildOptions,
    Built,
    build_from_images,
    build_in_parts,
    build_index,
    encode_folder,
)
from .encoding import Encoded, Report, encode_images
from .listing import ReadSettings

__all__ = [
    "BuildOptions",
    "Built",
    "Encoded",
    "ReadSettings",
    "Report",
    "build_from_images",
    "build_in_parts",
    "build_index",
    "encode_folder",
    "encode_images",
]
