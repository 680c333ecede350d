"""Parsers of commands: every help names the default; passed values are checked and listed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..bounds import Bound
from ..errors import InputError
from ..paths import given_path

OWN_WORDS = "default"
"""A help with this word already describes the case that the option is not passed."""


class Help(argparse.HelpFormatter):
    """Help that ends with the default of the option, where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        bare = action.default is None or action.nargs == 0  # a switch is off
        if bare or action.default == argparse.SUPPRESS or OWN_WORDS in text:
            return text
        return f"{text} (default: %(default)s)"


def _mark_given(namespace: argparse.Namespace, action: argparse.Action) -> None:
    namespace.given = getattr(namespace, "given", frozenset()) | set(action.option_strings)


def number(bound: Bound) -> dict[str, Any]:
    """Arguments of `add_argument` for an option that is a number."""
    return {"type": int if bound.whole else float, "check": bound.check}


Check = Callable[[Any, str], Any]
"""Takes a value and the name of its option; returns the value, or raises InputError."""


def some_of(known: tuple[str, ...]) -> Check:
    """Lets names of `known` through, separated by commas; each stays once."""

    def check(value: str, name: str) -> str:
        chosen = [word.strip() for word in value.split(",") if word.strip()]
        unknown = [word for word in chosen if word not in known]
        if unknown or not chosen:
            told = ", ".join(unknown) or "empty"
            raise InputError(f"{name} is {told}; choose some of {', '.join(known)}")
        return ",".join(dict.fromkeys(chosen))

    return check


class Store(argparse._StoreAction):
    """Stores a value that passes `check`; paths are never empty."""

    def __init__(self, *args: Any, check: Check | None = None, **settings: Any) -> None:
        if settings.get("type") is Path:
            check = given_path
            del settings["type"]
        super().__init__(*args, **settings)
        self.check = check

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        super().__call__(parser, namespace, self._checked(values), option_string)
        _mark_given(namespace, self)

    def _checked(self, values: Any) -> Any:
        if self.check is None or values is None:
            return values
        name = self.option_strings[0] if self.option_strings else str(self.metavar or self.dest)
        if isinstance(values, list):
            return [self.check(value, name) for value in values]
        return self.check(values, name)


class StoreTrue(argparse._StoreTrueAction):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        super().__call__(parser, namespace, values, option_string)
        _mark_given(namespace, self)


class Parser(argparse.ArgumentParser):
    """A parser whose namespaces have `given`, the options that were passed; its subparsers too."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=Help, **settings)
        for name in (None, "store"):
            self.register("action", name, Store)
        self.register("action", "store_true", StoreTrue)
        self.set_defaults(given=frozenset())
