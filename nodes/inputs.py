"""Checks of the values that nodes receive: an API workflow may have a constant in the place of a
link, and a linked value has passed no widget."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..arrag_engine.bounds import Bound, is_number, shown
from ..arrag_engine.decode import Drawing
from ..arrag_engine.errors import InputError
from ..arrag_engine.layers import Layer
from .memory import ManagedModel
from .types import RECOMMENDED_NUMBER, IndexChoice, TokenGrids

CHANNELS = (1, 3, 4)
Test = Callable[[Any], bool]


def is_image(value: object) -> bool:
    """Whether it is a batch of pictures [B, H, W, C] with something in it."""
    return (
        isinstance(value, Tensor)
        and value.ndim == 4
        and value.numel() > 0
        and value.shape[-1] in CHANNELS
    )


def _is(kind: type) -> Test:
    return lambda value: isinstance(value, kind)


def is_mask(value: object) -> bool:
    """Whether it is a mask [H, W] or a batch of them [B, H, W] with something in it."""
    return isinstance(value, Tensor) and value.ndim in (2, 3) and value.numel() > 0


def is_retrieval(value: object) -> bool:
    """Whether it is one or more layers."""
    return isinstance(value, tuple) and all(isinstance(one, Layer) for one in value)


KINDS: dict[str, tuple[Test, str]] = {
    "INT": (functools.partial(is_number, whole=True), "choose a whole number"),
    "FLOAT": (is_number, "choose a number"),
    "STRING": (_is(str), "write text"),
    "COMBO": (_is(str), "choose one of the list"),
    "BOOLEAN": (_is(bool), "choose true or false"),
    "IMAGE": (is_image, "connect one or more pictures"),
    "MASK": (is_mask, "connect a mask"),
    "ARRAG_MODEL": (_is(ManagedModel), "connect the output of Load AR Model"),
    "ARRAG_INDEX": (_is(IndexChoice), "connect the output of Load Patch Index"),
    "ARRAG_RETRIEVAL": (is_retrieval, "connect the output of Retrieval Options"),
    "ARRAG_TOKENS": (_is(TokenGrids), "connect the tokens of a sampler or of VQ Encode"),
    "ARRAG_TRACE": (_is(Drawing), "connect the trace of the sampler"),
}
"""By type of input: a test of values, and the advice where it fails."""


def checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """A node's `execute` behind `check_values`."""

    @functools.wraps(execute)
    def run(cls: type[io.ComfyNode], **values: Any) -> io.NodeOutput:
        check_values(cls.SCHEMA, values)
        return execute(cls, **values)

    return run


def check_values(schema: io.Schema, values: dict[str, Any]) -> None:
    """Refuse values of another type than the schema's, and links to inputs that it lacks, which a
    workflow of another version may have. The engine checks ranges.

    Raises:
        InputError: A value or a link is refused.
    """
    if unknown := sorted(values.keys() - {given.id for given in schema.inputs}):
        raise InputError(
            f"{schema.display_name} has no input {shown(unknown[0])}; disconnect it, or install "
            "the version of the node pack that the workflow was made with"
        )
    for given in schema.inputs:
        test, advice = KINDS.get(given.get_io_type(), (None, ""))
        if test is None or given.id not in values:
            continue
        value = values[given.id]
        if value is None and given.optional and not isinstance(given, io.WidgetInput):
            continue  # nothing is connected
        for one in value if schema.is_input_list and isinstance(value, list) else [value]:
            if not test(one):
                raise InputError(f"{given.id} is {described(one)}; {advice}")


def described(value: object) -> str:
    """A value in a message; of an object or a tensor, what it is."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    plain = value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))
    return shown(value) if plain else f"of the type {type(value).__name__}"


def chosen(bound: Bound, value: Any) -> Any:
    """The value of a number widget; None where the recommended one is meant.

    Raises:
        InputError: It is out of range.
    """
    return None if value == RECOMMENDED_NUMBER else bound.check(value)


def fingerprint(state: Callable[..., str], *names: Any) -> str | float:
    """The result of `state(*names)`. Where a name is linked or cannot be used, NaN, which makes
    ComfyUI run the node, whose error the user sees: an error here would only reach the log."""
    if not all(isinstance(name, str) for name in names):
        return float("nan")
    try:
        return state(*names)
    except (InputError, OSError):
        return float("nan")
