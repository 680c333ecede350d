"""Scenes for the pocket model: one to four emoji on a plain background, and what they show.

`Composer.scene(rng)` gives a picture and its caption, the same ones for the same generator state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from concepts import CONCEPTS, COUNTLESS, RECOLORED, article, plural
from sprites import COLORS, Sprites, fetch

SIZE = 96
"""Pixels along one side of a scene."""
STEP = 8
"""Sprites have sizes and places in multiples of the model's patch: the same thing then gives the
same tokens wherever it stands, which a decoder trained for minutes on a CPU needs."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
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
PLAIN = ("white", "white", "white", "gray", "yellow", "green", "blue", "blue", "pink")
"""Backgrounds of scenes whose caption names none."""

NUMBERS = {2: "two", 3: "three", 4: "four"}
RELATIONS = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
"""Phrase -> where the first thing stands from the second: columns right, rows down."""

LAYOUTS: dict[int, tuple[tuple[tuple[float, float], ...], ...]] = {
    1: (((0.5, 0.5),),),
    2: (((0.27, 0.5), (0.73, 0.5)), ((0.28, 0.3), (0.72, 0.7)), ((0.28, 0.7), (0.72, 0.3))),
    3: (
        ((0.5, 0.27), (0.27, 0.73), (0.73, 0.73)),
        ((0.27, 0.27), (0.73, 0.27), (0.5, 0.73)),
    ),
    4: (((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)),),
}
"""Number of things -> centres (x, y) as shares of the frame."""

SIZES = {1: (64, 80), 2: (40, 48), 3: (40,), 4: (40,)}
"""Number of things -> what their longest side may measure in pixels."""


@dataclass(frozen=True)
class Scene:
    """A picture [SIZE, SIZE, 3] uint8 with its caption."""

    pixels: np.ndarray
    caption: str


@dataclass(frozen=True)
class Thing:
    name: str
    color: str | None

    @property
    def phrase(self) -> str:
        return f"{self.color} {self.name}" if self.color else self.name


class Composer:
    """Draws random scenes of the named things."""

    def __init__(self, sprites: Sprites, names: Sequence[str]) -> None:
        self.sprites = sprites
        self.names = names
        self.kinds = (self._single, self._several, self._related, self._pair)

    def scene(self, rng: np.random.Generator) -> Scene:
        kind = self.kinds[np.searchsorted((0.46, 0.65, 0.85, 1.0), rng.random())]
        things, places, caption = kind(rng)
        pixels, backdrop = self._background(rng, [t.color for t in things])
        size = int(rng.choice(SIZES[len(things)]))
        for thing, (x, y) in zip(things, places, strict=True):
            self._paste(rng, pixels, thing, x, y, size)
        caption = f"{caption} on {article(backdrop)} background" if backdrop else caption
        return Scene((pixels * 255).round().clip(0, 255).astype(np.uint8), caption)

    def _thing(self, rng: np.random.Generator, colorful: float) -> Thing:
        name = self.names[rng.integers(len(self.names))]
        color = None
        if name in RECOLORED and rng.random() < colorful:
            color = list(COLORS)[rng.integers(len(COLORS))]
        return Thing(name, color)

    def _layout(self, rng: np.random.Generator, count: int) -> tuple[tuple[float, float], ...]:
        choices = LAYOUTS[count]
        return choices[rng.integers(len(choices))]

    def _single(self, rng):
        thing = self._thing(rng, 0.5)
        return [thing], LAYOUTS[1][0], article(thing.phrase)

    def _several(self, rng):
        thing = self._thing(rng, 0.3)
        if thing.name in COUNTLESS:
            return [thing], LAYOUTS[1][0], article(thing.phrase)
        count = int(rng.integers(2, 5))
        words = thing.phrase.removesuffix(thing.name) + plural(thing.name)
        return [thing] * count, self._layout(rng, count), f"{NUMBERS[count]} {words}"

    def _two(self, rng) -> tuple[Thing, Thing]:
        a, b = self._thing(rng, 0.35), self._thing(rng, 0.35)
        while b.name == a.name:
            b = self._thing(rng, 0.35)
        return a, b

    def _related(self, rng):
        a, b = self._two(rng)
        phrase = list(RELATIONS)[rng.integers(len(RELATIONS))]
        dx, dy = (0.23 * d for d in RELATIONS[phrase])
        places = ((0.5 + dx, 0.5 + dy), (0.5 - dx, 0.5 - dy))
        return [a, b], places, f"{article(a.phrase)} {phrase} {article(b.phrase)}"

    def _pair(self, rng):
        a, b = self._two(rng)
        return [a, b], self._layout(rng, 2), f"{article(a.phrase)} and {article(b.phrase)}"

    def _background(self, rng, taken: list[str | None]) -> tuple[np.ndarray, str | None]:
        """Plain or softly graded pixels [SIZE, SIZE, 3] in 0..1, and the name to mention if any.

        A thing is never put on a background of its own named colour.
        """
        named = rng.random() < 0.4
        choices = [n for n in (BACKGROUNDS if named else PLAIN) if n not in taken]
        name = choices[rng.integers(len(choices))]
        color = np.array(BACKGROUNDS[name]) / 255
        ramp = np.linspace(0.06, -0.06, SIZE) * (rng.random() < 0.1)
        pixels = np.broadcast_to(color + ramp[:, None, None], (SIZE, SIZE, 3))
        return pixels.astype(np.float32), name if named else None

    def _paste(self, rng, pixels, thing: Thing, x: float, y: float, size: int) -> None:
        """Lay a thing over `pixels` with its centre near (x, y), single ones moved a little."""
        sprite = self.sprites.at(thing.name, thing.color, size)
        height, width = sprite.shape[:2]
        shift = STEP * rng.integers(-1, 2, size=2) * (size > SIZE // 2)
        left = _place(x * SIZE - width / 2 + shift[0], SIZE - width)
        top = _place(y * SIZE - height / 2 + shift[1], SIZE - height)
        area = pixels[top : top + height, left : left + width]
        area *= 1 - sprite[..., 3:]
        area += sprite[..., :3]


def _place(wanted: float, most: int) -> int:
    """The multiple of STEP nearest to `wanted` within 0..most."""
    return int(np.clip(round(wanted / STEP), 0, most // STEP)) * STEP


def make_composer(archives: Path, names: Sequence[str] = tuple(CONCEPTS)) -> Composer:
    """A composer over the emoji package kept (or put) in the folder `archives`."""
    return Composer(Sprites(fetch(archives)), names)
