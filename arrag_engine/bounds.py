"""The range of every setting: nodes offer it, the command line and the engine check it."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, TypeVar

from .errors import InputError

Value = TypeVar("Value")

LONG = 128
"""Integers with more bits are not printed; Python refuses to convert very long ones."""


@dataclass(frozen=True)
class Bound:
    """The range of a number."""

    name: str
    """In messages."""
    low: float
    high: float
    whole: bool = False
    above: bool = False
    """Whether `low` itself is excluded."""
    below: bool = False
    """Whether `high` itself is excluded."""
    also: tuple[float | str, ...] = ()
    """Further values that are allowed."""

    def check(self, value: Value, name: str | None = None) -> Value:
        """The value, unchanged.

        Args:
            name: What the message calls it, such as the option of a command.

        Raises:
            InputError: It is out of range, not a number, or not a whole one where that is needed.
        """
        if (isinstance(value, str) or is_number(value)) and value in self.also:
            return value
        if is_number(value, self.whole) and self._holds(value):
            return value
        kind = "" if is_number(value, self.whole) else f"a {'whole ' * self.whole}number, "
        raise InputError(f"{name or self.name} is {shown(value)}; choose {kind}{self}")

    def _holds(self, value: Any) -> bool:
        """Never true of NaN."""
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        low, high = _number(self.low), _number(self.high)
        text = f"{low} to {high}"
        if self.above:
            text = f"more than {low}, at most {high}"
        if self.below:
            text = f"{low} or more, less than {high}"
        return ", or ".join((text, *map(_number, self.also)))


def is_number(value: object, whole: bool = False) -> bool:
    """Whether it is a real number, or a whole one; True and False are none."""
    return isinstance(value, Integral if whole else Real) and not isinstance(value, bool)


def shown(value: object) -> str:
    """A value as a message shows it: printable and shortened."""
    if isinstance(value, Integral) and int(value).bit_length() > LONG:
        return f"a number of {int(value).bit_length()} bits"
    if isinstance(value, Real):
        return str(value)
    return reprlib.repr(value)


def _number(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_choice(name: str, value: Value, choices: tuple[Value, ...]) -> Value:
    """The value, unchanged.

    Raises:
        InputError: It is none of the choices, or not text.
    """
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(str, choices))
        raise InputError(f"{name} is {shown(value)}; choose one of {listed}")
    return value


MAX_SEED = 2**64 - 1
SEED = Bound("seed", -(10**20), 10**20, whole=True)
"""Of a picture; it wraps at 2^64, so -1 is the same as `MAX_SEED`."""
SHARD_PICTURES = Bound("shard pictures", 0, 10**9, whole=True)
"""Of a shard of an index; 0 = one file."""
MAX_BATCH = 64
BATCH = Bound("batch", 1, MAX_BATCH, whole=True)
"""Memory grows with it: the key/value cache of a model of 1 B parameters has 0.2 GB a picture."""
WINDOW = Bound("window", 0, 4096, whole=True)
"""Tokens per pass; 0 = the device's."""
PASS_WINDOW = replace(WINDOW, low=1)
"""Tokens per pass, as the loop takes them."""
STEPS = Bound("steps", 1, 1000, whole=True)
POWER = Bound("power", 0, 100, above=True)
"""Of a schedule's curve."""
BEND = Bound("sigmoid", -100, 100)
"""Where the part of a sigmoid that a schedule follows begins and ends."""
BEND_WIDTH = Bound("sigmoid temperature", 0, 100, above=True)
PREVIEW_EVERY = Bound("preview_every", 0, 256, whole=True)

MIN_TEMPERATURE = 1e-4
"""A smaller one overflows float32; 0 is the exact limit."""
CFG = Bound("cfg", 0, 100)
TEMPERATURE = Bound("temperature", MIN_TEMPERATURE, 100, also=(0,))
TOP_K = Bound("top_k", 0, 1_000_000, whole=True)
TOP_P = Bound("top_p", 0, 1, above=True)
REDRAW = Bound("redraw", 0, 1)
"""Share of the masked tokens that is drawn anew."""
TIMES = Bound("times", 1, 16, whole=True)
"""How often outpainting adds half a grid. The pixels of the whole picture are decoded at once."""

WEIGHT = Bound("retrieval weight", 0, 1, also=("auto",))
RETRIEVAL_TEMPERATURE = Bound("retrieval temperature", MIN_TEMPERATURE, 1000)
NEIGHBOURS = Bound("neighbours", 1, 1_000_000, whole=True)
RETRIEVAL_TOP_P = Bound("retrieval top_p", 0, 1, above=True)
START = Bound("start", 0, 1)
END = Bound("end", 0, 1)
"""Shares of the picture."""
ROW_WEIGHT = Bound("row weight", 0, 1)
MAX_DISTANCE = Bound("max distance", 0, 1000)
"""Squared L2; 0 = no limit."""
COPY_LIMIT = Bound("copy limit", 0, 65536, whole=True)
"""Tokens of a copied region; 0 = no limit."""
OPACITY = Bound("opacity", 0, 1)
"""Of a heat map over its picture."""
CEILING = Bound("ceiling", 0, 1, above=True)
HARM_SHARE = Bound("harm", 0, 1)

POSITION_WEIGHT = Bound("position weight", 0, 100)
RECALL_TARGET = Bound("recall target", 0, 1, above=True)

STRENGTH = Bound("adapter strength", 0, 2)
MAX_CANDIDATES = 1000
CANDIDATES = Bound("candidates", 0, MAX_CANDIDATES, whole=True)
MAX_RANK = 4096

LIMIT = Bound("limit", 1, 10_000_000, whole=True)
FIRST_SEED = Bound("first seed", 0, MAX_SEED, whole=True)
PICTURES_EACH = Bound("seeds", 1, 10_000, whole=True)
"""Of a benchmark's prompt."""

LARGE = 1_000_000
TRAINING = {
    "steps": Bound("steps", 1, 10_000_000, whole=True),
    "batch": Bound("batch", 1, 1024, whole=True),
    "accumulation": Bound("accumulation", 1, 65536, whole=True),
    "lr": Bound("lr", 0, 10, above=True),
    "blender_lr": Bound("blender lr", 0, LARGE, above=True),
    "warmup": Bound("warmup", 0, 1),
    "weight_decay": Bound("weight decay", 0, 100),
    "clip": Bound("clip", 0, LARGE, above=True),
    "rank": Bound("rank", 0, MAX_RANK, whole=True),
    "alpha": Bound("alpha", 0, LARGE, above=True),
    "dropout": Bound("dropout", 0, 0.99),
    "blender_every": Bound("blender every", 0, 1000, whole=True),
    "blender_from": Bound("blender from", 0, 1000, whole=True),
    "gain": Bound("gain", 0, LARGE, above=True),
    "candidates": Bound("candidates", 1, MAX_CANDIDATES, whole=True),
    "pool": Bound("pool", 0, 65536, whole=True),
    "caption_dropout": Bound("caption dropout", 0, 1),
    "blend_dropout": Bound("blend dropout", 0, 1),
    "held_out": Bound("held out", 0, 1, below=True),
    "every": Bound("every", 1, 10_000_000, whole=True),
    "rehearse": Bound("rehearse", 0, 1, below=True),
    "rehearse_pictures": Bound("rehearse pictures", 1, LARGE, whole=True),
    "seed": Bound("seed", 0, MAX_SEED, whole=True),
}
"""By field of `TrainSettings`."""


def picture_seeds(seed: int, batch: int) -> list[int]:
    """The seeds of a batch: picture i is that of seed + i.

    Raises:
        InputError: A seed or a number of pictures out of range.
    """
    SEED.check(seed)
    return [seed + i for i in range(BATCH.check(batch))]
