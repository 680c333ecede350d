"""Parsers of commands: every help names the default, and what was passed is remembered."""

from __future__ import annotations

import argparse
from typing import Any

OWN_WORDS = "default"
"""A help with this word says itself what applies where an option is not passed."""


class Help(argparse.HelpFormatter):
    """Help that ends with the default of the option, where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told = action.help or ""
        silent = action.default is None or action.nargs == 0  # a switch is off
        if silent or action.default == argparse.SUPPRESS or OWN_WORDS in told:
            return told
        return f"{told} (default: %(default)s)"


def _remember(namespace: argparse.Namespace, action: argparse.Action) -> None:
    namespace.given = getattr(namespace, "given", frozenset()) | set(action.option_strings)


class Store(argparse._StoreAction):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        super().__call__(parser, namespace, values, option_string)
        _remember(namespace, self)


class StoreTrue(argparse._StoreTrueAction):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        super().__call__(parser, namespace, values, option_string)
        _remember(namespace, self)


class Parser(argparse.ArgumentParser):
    """A parser whose namespaces have `given`, the options that were passed; its subparsers too."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=Help, **settings)
        for name in (None, "store"):
            self.register("action", name, Store)
        self.register("action", "store_true", StoreTrue)
        self.set_defaults(given=frozenset())
