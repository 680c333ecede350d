"""Scenes for the pocket model: one to four emoji on a background, and the truth about them.

    composer = make_composer(archives, names=LEARNT, style="fluent", split="train")
    scene = composer.scene(rng)                       # a random one
    scene = composer.scene(rng, kind="counting")      # one of captions.KINDS
    scene.pixels, scene.caption, scene.kind, scene.things[0].box

The same generator state gives the same scene. What a scene shows decides which split it belongs to
(`split_of`), so "train" and "held_out" never share a scene, whatever their seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import backgrounds
import numpy as np
from backgrounds import SIZE, STEP
from captions import KINDS, NUMBERS, RELATIONS, Meaning, Named, write
from concepts import CONCEPTS, COUNTLESS, RECOLORED
from sprites import COLORS, STYLES, Sprites, fetch, read_archive

SHARES = (0.2, 0.15, 0.15, 0.2, 0.15, 0.15)
"""How often each of KINDS is drawn."""

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

SIZES = {1: 72, 2: 48, 3: 40, 4: 40}
"""Number of things -> their longest side in pixels."""
ANY_SIZE = (32, 88)
"""Longest sides in loose scenes."""

COUNTED_COLORED, RELATED_COLORED = 0.2, 0.2
"""Share of counted things, and of each related thing, whose colour is named."""
NAMED_PLAIN, SCENIC, GRADED = 0.3, 0.2, 0.07
"""Shares of scenes with a plain background that the caption names, a scenery, a gradient."""
EVENLY = (0.4, 0.3, 0.05)
"""The same shares where every background is to be learnt well, the rare ones too."""

HELD_OUT_OF = 8
"""One scene of so many is held out."""


@dataclass(frozen=True)
class Thing:
    """Something in a scene."""

    name: str
    color: str | None
    """None: its own."""
    box: tuple[int, int, int, int]
    """Left, top, right, bottom in pixels; right and bottom are just outside."""


@dataclass(frozen=True)
class Scene:
    """A picture with the truth about it."""

    pixels: np.ndarray = field(repr=False, compare=False)
    """[SIZE, SIZE, 3] uint8."""
    caption: str
    kind: str
    things: tuple[Thing, ...]
    """In the order in which the caption names them."""
    background: str
    """One of backgrounds.NAMES, whether the caption names it or not."""
    style: str


def split_of(style: str, background: str, things: Sequence[Thing]) -> str:
    """ "held_out" for a fixed eighth of all that can be drawn, "train" for the rest."""
    drawn = repr((style, background, sorted((t.name, t.color or "", t.box) for t in things)))
    digest = hashlib.sha256(drawn.encode()).digest()
    return "held_out" if digest[0] % HELD_OUT_OF == 0 else "train"


class Composer:
    """Draws random scenes of the named things.

    Args:
        sprites: the things' pictures in one style.
        names: what scenes may show.
        split: which scenes to draw, "train" or "held_out".
        loose: share of scenes whose things have any size and place, off the raster.
        shares: of scenes with a named plain background, a scenery, a gradient.
    """

    def __init__(
        self,
        sprites: Sprites,
        names: Sequence[str],
        split: str,
        loose: float = 0.0,
        shares: tuple[float, float, float] = (NAMED_PLAIN, SCENIC, GRADED),
    ) -> None:
        self.sprites, self.names, self.split, self.loose = sprites, names, split, loose
        self.shares = shares
        self.colorful = [name for name in names if name in RECOLORED]
        self.countable = [name for name in names if name not in COUNTLESS]
        self.paintings = {name: backgrounds.paint(name) for name in backgrounds.NAMES}

    def scene(self, rng: np.random.Generator, kind: str | None = None) -> Scene:
        """A random scene of the split; of any kind unless one of captions.KINDS is given."""
        while True:
            meaning, background = self._meaning(rng, kind or str(rng.choice(KINDS, p=SHARES)))
            drawn = self._arrange(rng, meaning)
            if split_of(meaning.style, background, drawn) == self.split:
                return self._draw(meaning, background, drawn)

    def _meaning(self, rng: np.random.Generator, kind: str) -> tuple[Meaning, str]:
        """What to show, and the background, which the meaning may leave unsaid."""
        relation = None
        if kind == "counting":
            thing = self._thing(rng, self.countable, COUNTED_COLORED)
            things = (thing,) * int(rng.integers(2, max(NUMBERS) + 1))
        elif kind in ("single_object", "colors"):
            names = self.colorful if kind == "colors" else self.names
            things = (self._thing(rng, names, kind == "colors"),)
        else:
            names = self.colorful if kind == "color_attr" else self.names
            share = {"two_object": 0, "position": RELATED_COLORED, "color_attr": 1}[kind]
            things = (self._thing(rng, names, share), self._thing(rng, names, share))
            while things[1][0] == things[0][0]:
                things = (things[0], self._thing(rng, names, share))
            if kind == "position":
                relation = list(RELATIONS)[rng.integers(len(RELATIONS))]
        background, named = self._background(rng, things)
        said = background if named else None
        return Meaning(kind, things, relation, said, self.sprites.style), background

    def _thing(self, rng: np.random.Generator, names: Sequence[str], colorful: float) -> Named:
        name = names[rng.integers(len(names))]
        if name in RECOLORED and rng.random() < colorful:
            return name, list(COLORS)[rng.integers(len(COLORS))]
        return name, None

    def _background(self, rng: np.random.Generator, things: Sequence[Named]) -> tuple[str, bool]:
        """A background and whether the caption names it; never a thing's own named colour."""
        chance, taken = rng.random(), [color for _, color in things]
        plain, scenic, graded = self.shares
        if chance < scenic:
            return str(rng.choice(list(backgrounds.SCENERIES))), True
        if chance < scenic + graded:
            return str(rng.choice(list(backgrounds.GRADIENTS))), False
        named = chance < scenic + graded + plain
        choices = list(backgrounds.PLAIN) if named else backgrounds.UNNAMED
        return str(rng.choice([name for name in choices if name not in taken])), named

    def _arrange(self, rng: np.random.Generator, meaning: Meaning) -> list[Thing]:
        """Boxes for the things: on the raster, single ones moved a little; or anywhere."""
        count = len(meaning.things)
        if meaning.relation:
            dx, dy = (0.23 * d for d in RELATIONS[meaning.relation])
            centres = ((0.5 + dx, 0.5 + dy), (0.5 - dx, 0.5 - dy))
        else:
            centres = LAYOUTS[count][rng.integers(len(LAYOUTS[count]))]
        loose = rng.random() < self.loose
        size = int(rng.integers(*ANY_SIZE)) if loose else SIZES[count]
        step = 1 if loose else STEP
        placed = []
        for (name, color), (x, y) in zip(meaning.things, centres, strict=True):
            width, height = self.sprites.extent(name, size)
            shift = STEP * rng.integers(-1, 2, size=2) * (count == 1)
            left = _place(x * SIZE - width / 2 + shift[0], SIZE - width, step)
            top = _place(y * SIZE - height / 2 + shift[1], SIZE - height, step)
            placed.append(Thing(name, color, (left, top, left + width, top + height)))
        return placed

    def _draw(self, meaning: Meaning, background: str, things: list[Thing]) -> Scene:
        pixels = self.paintings[background].copy()
        for thing in things:
            left, top, right, bottom = thing.box
            sprite = self.sprites.at(thing.name, thing.color, max(right - left, bottom - top))
            area = pixels[top:bottom, left:right]
            area *= 1 - sprite[..., 3:]
            area += sprite[..., :3]
        pixels = (pixels * 255).round().clip(0, 255).astype(np.uint8)
        kind, style = meaning.kind, meaning.style
        return Scene(pixels, write(meaning), kind, tuple(things), background, style)


def _place(wanted: float, most: int, step: int) -> int:
    """The multiple of `step` nearest to `wanted` within 0..most."""
    return int(np.clip(round(wanted / step), 0, most // step)) * step


def make_composer(
    archives: Path,
    names: Sequence[str] = tuple(CONCEPTS),
    style: str = STYLES[0],
    split: str = "train",
    loose: float = 0.0,
    shares: tuple[float, float, float] = (NAMED_PLAIN, SCENIC, GRADED),
) -> Composer:
    """A composer over the emoji packages kept (or put) in the folder `archives`."""
    pictures = read_archive(fetch(archives, style), style, CONCEPTS)
    return Composer(Sprites(pictures, style), names, split, loose, shares)
