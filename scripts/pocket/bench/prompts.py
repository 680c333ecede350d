"""Prompts with what their pictures must show, and the verdict: GenEval's format and rules.

One JSON object a line: `tag` (the kind), `prompt`, `include` (each with `class`, `count` and maybe
`color` and `position`: [relation, number of the entry it is relative to]) and maybe `exclude`
(`class`, `count`: so many are too many). Beyond GenEval: `style`, that of every thing included.
GenEval: arXiv 2310.11513.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrag_engine.errors import InputError
from arrag_engine.evaluate.benchmark import evenly

if TYPE_CHECKING:
    from .scorer import Detection

KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's six kinds, by its own tags."""
CONCEPT, STYLE = "concept", "style"
"""Kinds that retrieval is for: things, or a style, that only the index has."""

DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
NEAR = 0.1
"""Share of the frame by which a middle must stand off in the direction named."""


@dataclass(frozen=True)
class Wanted:
    """Some alike things that a picture must show."""

    name: str
    count: int = 1
    color: str | None = None
    """None: any."""
    position: tuple[str, int] | None = None
    """Relation to the things of an earlier entry."""


@dataclass(frozen=True)
class BenchPrompt:
    """A caption and what makes its picture right."""

    kind: str
    text: str
    include: tuple[Wanted, ...]
    exclude: tuple[tuple[str, int], ...] = ()
    """(name, how many are too many)."""
    style: str | None = None


@dataclass(frozen=True)
class Verdict:
    """How far a picture shows what its prompt asks for."""

    right: bool
    objects: float
    """Share of the things asked for that are there, whatever their colour, place and style."""


def to_record(prompt: BenchPrompt) -> dict[str, Any]:
    """The prompt in GenEval's metadata format."""
    include = []
    for wanted in prompt.include:
        entry: dict[str, Any] = {"class": wanted.name, "count": wanted.count}
        if wanted.color:
            entry["color"] = wanted.color
        if wanted.position:
            entry["position"] = list(wanted.position)
        include.append(entry)
    record: dict[str, Any] = {"tag": prompt.kind, "include": include}
    if prompt.exclude:
        record["exclude"] = [{"class": name, "count": count} for name, count in prompt.exclude]
    if prompt.style:
        record["style"] = prompt.style
    return record | {"prompt": prompt.text}


def from_record(record: dict[str, Any]) -> BenchPrompt:
    """The prompt of a metadata record.

    Raises:
        ValueError: Not such a record.
    """
    try:
        include = tuple(_wanted(entry, i) for i, entry in enumerate(record["include"]))
        exclude = tuple((str(e["class"]), int(e["count"])) for e in record.get("exclude", ()))
        kind, text = str(record["tag"]), str(record["prompt"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the record lacks or misspells {error}") from error
    return BenchPrompt(kind, text, include, exclude, record.get("style"))


def _wanted(entry: dict[str, Any], number: int) -> Wanted:
    position = entry.get("position")
    if position is not None:
        relation, target = position
        if relation not in DIRECTIONS or not 0 <= int(target) < number:
            raise ValueError(f"position {position} names no relation to an earlier entry")
        position = (str(relation), int(target))
    return Wanted(str(entry["class"]), int(entry["count"]), entry.get("color"), position)


def read_prompts(path: Path) -> list[BenchPrompt]:
    """The prompts of a JSONL file.

    Raises:
        InputError: The file is missing or one of its lines is no prompt.
    """
    prompts = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read prompts from {path} ({error})") from error
    for number, line in enumerate(lines, 1):
        try:
            prompts.append(from_record(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"line {number} of {path} is not a prompt ({error}); write it as GenEval's metadata"
            ) from error
    return prompts


def of_kind(
    prompts: Sequence[BenchPrompt], kind: str, limit: int | None = None
) -> list[BenchPrompt]:
    """The prompts of a kind, at most `limit`, evenly taken."""
    return evenly([prompt for prompt in prompts if prompt.kind == kind], limit)


def write_prompts(prompts: Sequence[BenchPrompt], path: Path) -> None:
    lines = [json.dumps(to_record(prompt)) for prompt in prompts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def judge(prompt: BenchPrompt, found: Sequence[Detection]) -> Verdict:
    """Whether the things found on a picture, the surest first, are those asked for.

    As in GenEval every entry of `include` must be there at least as often as it says, with its
    colour and place; only `exclude` forbids anything.
    """
    groups: list[list[Detection]] = []
    right, there, asked = True, 0, 0
    for wanted in prompt.include:
        group = [d for d in found if d.name == wanted.name][: wanted.count]
        asked += wanted.count
        there += len(group)
        groups.append(group)
        right &= len(group) == wanted.count
        right &= wanted.color is None or all(d.color == wanted.color for d in group)
        right &= prompt.style is None or all(d.style == prompt.style for d in group)
        if wanted.position:
            relation, target = wanted.position
            right &= all(stands(a, relation, b) for a in group for b in groups[target])
    for name, too_many in prompt.exclude:
        right &= sum(d.name == name for d in found) < too_many
    return Verdict(bool(right), there / max(1, asked))


def stands(a: Detection, relation: str, b: Detection) -> bool:
    """Whether a stands left of, right of, above or below b: more so than to another side, by
    less than 60 degrees off, as in GenEval."""
    dx, dy = a.x - b.x, a.y - b.y
    along = dx * DIRECTIONS[relation][0] + dy * DIRECTIONS[relation][1]
    return along > NEAR and along > 0.5 * math.hypot(dx, dy)
