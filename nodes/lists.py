"""Inputs of a node that takes whole lists (`is_input_list`): every one of them comes as a list."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..arrag_engine.errors import InputError


def single(name: str, values: Any) -> Any:
    """The one value of an input; a list of equal values is one.

    Raises:
        InputError: It has none, or several.
    """
    if not isinstance(values, list | tuple):  # a caller without lists
        return values
    if not values:
        raise InputError(f"{name} is an empty list; connect one value")
    first = values[0]
    if any(value != first for value in values[1:]):
        raise InputError(
            f"{name} is a list of {len(values)} different values; one index takes one of them"
        )
    return first


def unpacked(values: Any) -> Any:
    """The value of a list that has just one; anything else as it is."""
    return values[0] if isinstance(values, list | tuple) and len(values) == 1 else values


def singles(inputs: dict[str, Any]) -> dict[str, Any]:
    """The one value of each input."""
    return {name: single(name, values) for name, values in inputs.items()}


def pictures(values: list[Tensor | None] | None) -> list[Tensor] | None:
    """Pictures [H, W, channels] of a list of batches, of any sizes; None if nothing is connected.

    Raises:
        InputError: The list is empty.
    """
    batches = [batch for batch in values or () if batch is not None]
    if values is not None and len(values) == 0:
        raise InputError("the images input is an empty list; connect pictures")
    return [picture for batch in batches for picture in batch] if batches else None


def captions(values: list[str | None] | str | None) -> list[str]:
    """A caption for each picture: the lines of one text, or the texts of a list; none if all are
    blank."""
    texts = [values] if isinstance(values, str) else [text or "" for text in values or ()]
    if not any(text.strip() for text in texts):
        return []
    return texts if len(texts) > 1 else texts[0].splitlines()
