"""Names and sizes of tensors, whatever the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

Shapes = dict[str, tuple[int, ...]]
Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern, and what re.sub puts in its place."""


def renamed(name: str, rules: Iterable[Rule]) -> str:
    """A name after all rules, one after the other."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def section(config: dict[str, Any], *names: str) -> dict[str, Any]:
    """The first of these parts of a config that is there and a table; else an empty one."""
    for name in names:
        if isinstance(config.get(name), dict):
            return config[name]
    return {}


def count_parts(shapes: Shapes, pattern: str) -> int:
    """How many parts, numbered from 0, the names hold."""
    found = {int(m[1]) for name in shapes if (m := re.match(pattern, name))}
    count = max(found, default=-1) + 1
    if len(found) != count:
        raise ValueError(f"{len(found)} of {count} layers are there, download all of its files")
    return count
