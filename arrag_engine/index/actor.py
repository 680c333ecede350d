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


class ShardActor:
    """The shards that one process of a machine searches.

    Processes, not threads: a look-up is many short calls, between which threads would wait for the
    interpreter.
    """

    shards: Any

    def open(self, path: str, facts: Mapping[str, Any], numbers: Sequence[int]) -> str:
        """Open shards of a manifest; returns what is wrong with them, or nothing."""
        try:
            wire = importlib.import_module("arrag_engine.index.wire")
        except ImportError:
            return (
                f"Python on {os.uname().nodename} does not find the package arrag; install it on "
                "all machines of the cluster with: pip install '.[cluster]'"
            )
        try:
            self.shards = wire.Shards(path, facts, numbers)
        except wire.InputError as error:
            return str(error)
        return ""

    def node(self) -> str:
        """Id of the machine."""
        ray: Any = importlib.import_module("ray")
        return ray.get_runtime_context().get_node_id()

    def ask(self, method: str, each: Mapping[int, Any]) -> tuple[str, dict[int, Any]]:
        """See `Shards.ask`."""
        return self.shards.ask(method, each)
