"""Schema fields that newer versions of ComfyUI have, passed only where the class takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io


def taken(kind: Callable[..., object], **fields: Any) -> dict[str, Any]:
    """Those of the fields that a class takes."""
    known = inspect.signature(kind).parameters
    return {name: value for name, value in fields.items() if name in known}


ADVANCED = taken(io.Float.Input, advanced=True)
"""For inputs that are rarely touched: newer frontends fold them away."""


def found_by(*words: str) -> dict[str, Any]:
    """Other words that a search for the node finds it by."""
    return taken(io.Schema, search_aliases=list(words))
