"""What crosses between the machines of a cluster: numbers, texts, arrays, and tuples of them.

No class of this package crosses, for in ComfyUI the package has another name than on the machines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import InputError
from .hits import Hits
from .keys import KeySpec
from .lookup import About, Filtered, LocalLookup, Matching, ShardFacts, View
from .manifest import manifest_of, open_shard
from .sources import Source

PARTS = {part.__name__: part for part in (Matching, About, Filtered)}
ANSWERS: dict[str, Any] = {"facts": ShardFacts, "lookup": Hits, "source": Source}
"""What methods of `LocalLookup` return, where that is of a class of this package."""


def plain_arguments(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments of a method of `LocalLookup`, as they cross."""
    return tuple(_plain_view(one) if isinstance(one, View) else one for one in arguments)


def answer_of(method: str, plain: Any) -> Any:
    """What a method returned, of what crossed."""
    return ANSWERS[method](*plain) if method in ANSWERS else plain


class Shards:
    """Shards of a manifest, on the machine that searches them, one after the other."""

    def __init__(self, path: str, facts: Mapping[str, Any]) -> None:
        self.manifest = manifest_of(Path(path), facts)
        self.lookups: dict[int, LocalLookup] = {}

    def open(self, numbers: Sequence[int]) -> None:
        """Open some shards, beside those that are open.

        Raises:
            InputError: One is missing, damaged or not what the manifest says.
        """
        for number in numbers:
            self.lookups[number] = LocalLookup(open_shard(self.manifest, number))

    def ask(self, method: str, each: Mapping[int, tuple[Any, ...]]) -> tuple[str, dict[int, Any]]:
        """(the sentence of an `InputError`, what shards answer to a method by their numbers)."""
        try:
            return "", {number: self._answer(number, method, each[number]) for number in each}
        except InputError as error:
            return str(error), {}

    def _answer(self, number: int, method: str, plain: tuple[Any, ...]) -> Any:
        takes_view = method in ("lookup", "pictures", "partial")
        arguments = (_view_of(plain[0]), *plain[1:]) if takes_view else plain
        answer = getattr(self.lookups[number], method)(*arguments)
        return _values(answer) if method in ANSWERS else answer


def _plain_view(view: View) -> tuple[Any, ...]:
    parts = tuple((type(part).__name__, _values(part)) for part in view.parts)
    return parts, None if view.spec is None else _values(view.spec), view.bits


def _view_of(plain: tuple[Any, ...]) -> View:
    parts, spec, bits = plain
    own = tuple(PARTS[name](*values) for name, values in parts)
    return View(own, None if spec is None else KeySpec(*spec), bits)


def _values(thing: Any) -> tuple[Any, ...]:
    """The values of a dataclass or a named tuple."""
    if isinstance(thing, tuple):
        return tuple(thing)
    return tuple(getattr(thing, field.name) for field in fields(thing))
