"""Captions of scenes: written from what is in them, and read back."""

from __future__ import annotations

import re
from dataclasses import dataclass

import backgrounds
from concepts import CONCEPTS, COUNTLESS, article, plural
from sprites import COLORS

KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The six kinds of GenEval, by its own tags."""

NUMBERS = {2: "two", 3: "three", 4: "four"}
RELATIONS = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
"""Phrase -> where the first thing stands from the second: columns right, rows down."""

STYLE_WORDS = {"fluent": "", "google": "in flat style"}
"""Drawing style -> how captions name it."""

Named = tuple[str, str | None]
"""A thing's name, and its colour if it is not its own."""


@dataclass(frozen=True)
class Meaning:
    """What a caption says."""

    kind: str
    things: tuple[Named, ...]
    """As often as they are there."""
    relation: str | None = None
    """Of the first thing to the second."""
    background: str | None = None
    """None where nothing is said of it."""
    style: str = "fluent"


def phrase(thing: Named) -> str:
    name, color = thing
    return f"{color} {name}" if color else name


def write(meaning: Meaning) -> str:
    """The caption that says it, such as "a red car left of a tree at night"."""
    first = meaning.things[0]
    if meaning.kind == "counting":
        words = phrase((plural(first[0]), first[1]))
        parts = [f"{NUMBERS[len(meaning.things)]} {words}"]
    else:
        link = f" {meaning.relation or 'and'} "
        parts = [link.join(article(phrase(thing)) for thing in meaning.things)]
    if meaning.background:
        parts.append(backgrounds.words(meaning.background))
    parts.append(STYLE_WORDS[meaning.style])
    return " ".join(part for part in parts if part)


def read(caption: str) -> Meaning:
    """The meaning of a caption that `write` could have made.

    Raises:
        ValueError: it could not.
    """
    style = next(s for s, w in reversed(STYLE_WORDS.items()) if caption.endswith(w))
    rest = caption.removesuffix(STYLE_WORDS[style]).strip()
    background = None
    for name in (*backgrounds.PLAIN, *backgrounds.SCENERIES):
        words = " " + backgrounds.words(name)
        if rest.endswith(words):
            background, rest = name, rest.removesuffix(words)
    counted = re.fullmatch(rf"({'|'.join(NUMBERS.values())}) (?:(\w+) )?(\w+)", rest)
    if counted:
        number = {word: n for n, word in NUMBERS.items()}[counted[1]]
        things = (_known(_SINGULAR.get(counted[3], ""), counted[2], caption),) * number
        return Meaning("counting", things, None, background, style)
    link = re.search(rf" ({'|'.join(RELATIONS)}|and) ", rest)
    halves = [rest[: link.start()], rest[link.end() :]] if link else [rest]
    things = tuple(_read_thing(half, caption) for half in halves)
    relation = link[1] if link and link[1] != "and" else None
    kind = kind_of(things, relation)
    return Meaning(kind, things, relation, background, style)


def kind_of(things: tuple[Named, ...], relation: str | None) -> str:
    """The kind of a scene of these things, unless it is counted."""
    if relation:
        return "position"
    colored = any(color for _, color in things)
    if len(things) == 1:
        return "colors" if colored else "single_object"
    return "color_attr" if colored else "two_object"


_SINGULAR = {plural(name): name for name in CONCEPTS if name not in COUNTLESS}


def _read_thing(words: str, caption: str) -> Named:
    match = re.fullmatch(r"an? (?:(\w+) )?(\w+)", words)
    if not match:
        raise ValueError(f"{caption!r} has no thing in {words!r}")
    return _known(match[2], match[1], caption)


def _known(name: str, color: str | None, caption: str) -> Named:
    if name not in CONCEPTS or (color and color not in COLORS):
        raise ValueError(f"{caption!r} names something unknown")
    return name, color
