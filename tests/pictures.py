"""Picture files for tests."""

import struct
import zlib

import numpy as np
from PIL import Image


def picture(path, seed=0, size=(20, 15), mode="RGB", **options):
    """Save a picture of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)


COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's number of a colour type by its channels."""


def png_16_bit(path, pixels, transparent=()):
    """Write a 16-bit PNG, which Pillow cannot for more than one channel.

    Args:
        pixels: [H, W, channels].
        transparent: The value of each channel that stands for transparency.
    """
    pixels = np.asarray(pixels, dtype=">u2")
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, COLOR_TYPES[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if transparent:
        chunks.insert(1, (b"tRNS", struct.pack(f">{channels}H", *transparent)))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )
    return path
