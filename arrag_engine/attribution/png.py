"""A picture as the bytes of a PNG, and files that appear together."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..files import atomic_write


def png_bytes(image: Image.Image, texts: Mapping[str, str], compress_level: int = 4) -> bytes:
    """The picture as a PNG with text chunks, in their order."""
    info, buffer = PngInfo(), io.BytesIO()
    for keyword, text in texts.items():
        info.add_text(keyword, text)
    image.save(buffer, "PNG", pnginfo=info, compress_level=compress_level)
    return buffer.getvalue()


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files. None of them appears before all are on disk.

    Raises:
        InputError: One of them cannot be written.
    """
    with ExitStack() as stack:
        for path, data in files.items():
            stack.enter_context(atomic_write(path)).write_bytes(data)
