"""What Ray runs on the machines of a cluster.

This file is sent to them as it is, and imports the package there by the name under which it is
installed: in ComfyUI the package has another one.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any


def present(paths: Sequence[str]) -> list[int]:
    """Numbers of those files that this machine has."""
    return [number for number, path in enumerate(paths) if os.path.isfile(path)]


def lacks(package: str | None) -> str:
    """What is said of a machine whose Python does not find a package."""
    return (
        f"a machine of the cluster lacks the Python package {package}; install this one on all of "
        "them, with: pip install '.[cluster]'"
    )


class ShardActor:
    """The shards that one process of a machine searches.

    Processes, not threads: a look-up is many short calls, between which threads would wait for the
    interpreter.
    """

    def __init__(self) -> None:
        self.shards: Any = None

    def open(self, path: str, facts: Mapping[str, Any], numbers: Sequence[int]) -> str:
        """Open shards of a manifest, beside those that are open; returns what is wrong with them,
        or nothing."""
        try:
            wire = importlib.import_module("arrag_engine.index.wire")
        except ImportError as error:
            return lacks(error.name)
        try:
            self.shards = self.shards or wire.Shards(path, facts)
            self.shards.open(numbers)
        except wire.InputError as error:
            return str(error)
        except (KeyError, TypeError, ValueError) as error:
            return (
                f"a machine of the cluster has another version of this package ({error}); install "
                "the same on all of them"
            )
        return ""

    def ask(self, method: str, each: Mapping[int, Any]) -> tuple[str, dict[int, Any]]:
        """See `Shards.ask`."""
        return self.shards.ask(method, each)
