"""A few made sprites instead of the emoji packages."""

import numpy as np
from concepts import LEARNT
from PIL import Image
from sprites import BASE_SIZE, Sprites

NAMES = ("car", "cat", "bus", "sun", "umbrella", "strawberry", "penguin", "star")
assert set(NAMES) <= set(LEARNT)


def made_sprites(style: str) -> Sprites:
    """Opaque rectangles of noise, each name with its own proportions."""
    pictures = {}
    for number, name in enumerate(NAMES):
        rng = np.random.default_rng((number, len(style)))
        size = (BASE_SIZE, BASE_SIZE - 9 * number)[:: 1 if number % 2 else -1]
        pixels = rng.integers(40, 220, (size[1], size[0], 4), dtype=np.uint8)
        pixels[..., 3] = 255
        pictures[name] = Image.fromarray(pixels, "RGBA")
    return Sprites(pictures, style)
