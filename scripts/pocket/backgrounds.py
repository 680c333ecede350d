"""What things stand on: plain colours, soft gradients, and simple sceneries drawn by code.

Everything keeps to the model's 8-pixel raster, so the same background gives the same patches.
"""

from __future__ import annotations

import numpy as np

SIZE = 96
"""Pixels along one side of a scene."""
STEP = 8
"""Sprites have places in multiples of the model's patch: the same thing then gives the same
patches wherever it stands, which a decoder trained for an hour on a CPU needs."""

Color = tuple[int, int, int]

PLAIN: dict[str, Color] = {
    "white": (250, 250, 250),
    "gray": (165, 168, 172),
    "black": (28, 28, 32),
    "red": (214, 72, 66),
    "orange": (240, 160, 82),
    "yellow": (246, 222, 122),
    "green": (140, 200, 130),
    "blue": (126, 178, 232),
    "purple": (172, 140, 214),
    "pink": (244, 180, 204),
}
"""Named plain colours."""

UNNAMED = ("white", "white", "white", "white", "gray", "yellow", "green", "blue", "pink")
"""Plain backgrounds of scenes whose caption names none."""

GRADIENTS: dict[str, tuple[Color, Color]] = {
    "blue gradient": ((96, 156, 226), (208, 230, 250)),
    "pink gradient": ((238, 150, 190), (252, 226, 214)),
    "green gradient": ((120, 190, 140), (226, 242, 200)),
    "gray gradient": ((140, 146, 156), (228, 230, 232)),
}
"""Top and bottom colour; captions do not mention them."""

SCENERIES: dict[str, tuple[str, tuple[tuple[int, Color], ...]]] = {
    "grass": ("on the grass", ((0, (150, 208, 244)), (7, (116, 186, 90)))),
    "beach": ("on the beach", ((0, (160, 216, 246)), (5, (64, 150, 200)), (8, (240, 218, 160)))),
    "snow": ("in the snow", ((0, (176, 198, 220)), (7, (246, 249, 252)))),
    "desert": ("in the desert", ((0, (250, 226, 178)), (7, (222, 168, 98)))),
    "sunset": (
        "at sunset",
        ((0, (120, 92, 160)), (3, (214, 108, 130)), (5, (246, 160, 96)), (8, (70, 66, 110))),
    ),
    "night": ("at night", ((0, (26, 32, 70)), (8, (36, 58, 54)))),
}
"""Name -> words in the caption, and the colour from each patch row on, top to bottom."""

NAMES = (*PLAIN, *GRADIENTS, *SCENERIES)


def words(background: str) -> str:
    """How a caption mentions a plain background or a scenery: "on a red background", "at night"."""
    if background in SCENERIES:
        return SCENERIES[background][0]
    return f"on {'an' if background == 'orange' else 'a'} {background} background"


def paint(background: str) -> np.ndarray:
    """Pixels [SIZE, SIZE, 3] float32 in 0..1."""
    if background in PLAIN:
        rows = np.tile(np.array(PLAIN[background], dtype=np.float32), (SIZE, 1))
    elif background in GRADIENTS:
        top, bottom = (np.array(c, dtype=np.float32) for c in GRADIENTS[background])
        share = (np.arange(SIZE // STEP) / (SIZE // STEP - 1)).repeat(STEP)[:, None]
        rows = top + (bottom - top) * share.astype(np.float32)
    else:
        return _paint_scenery(background)
    return np.repeat(rows[:, None] / 255, SIZE, axis=1)


def _paint_scenery(name: str) -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE]
    pixels = np.zeros((SIZE, SIZE, 3), dtype=np.float32)
    for row, color in SCENERIES[name][1]:
        wave = np.where(row > 0, 1.5 * np.sin(2 * np.pi * x / (2 * STEP)), 0)
        pixels[y >= row * STEP + 2 + wave if row else y >= 0] = np.array(color) / 255
    if name == "night":  # a star in every other patch of three rows of the sky
        for row, column in ((1, 1), (1, 7), (3, 4), (3, 10), (5, 1), (5, 7)):
            top, left = row * STEP + 3, column * STEP + 3
            pixels[top : top + 2, left : left + 2] = 0.95
    return pixels
