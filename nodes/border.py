"""The border between our nodes and ComfyUI: texts that cross it can be printed anywhere.

ComfyUI writes an exception to its log streams. A text that a stream cannot encode, such as a file
name in another alphabet on a Windows pipe, ends the thread that works through the queue.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..arrag_engine.errors import LONGEST, InputError, printable

METHODS = ("define_schema", "validate_inputs", "fingerprint_inputs", "execute")
"""What ComfyUI calls."""
OURS = __name__.rpartition(".")[0]
PACK = str(Path(__file__).parent.parent)

Node = TypeVar("Node", bound=type)


def bordered(node: Node) -> Node:
    """The node, with all methods that ComfyUI calls guarded, its own and inherited ones."""
    for owner in node.__mro__:
        if owner.__module__.startswith(OURS):
            for name in METHODS:
                method = getattr(vars(owner).get(name), "__func__", None)
                if method is not None and not hasattr(method, "bordered"):
                    setattr(owner, name, classmethod(_guarded(method)))
    return node


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method; what it raises, or answers in words, can be printed."""

    @functools.wraps(method)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            answer = method(*args, **kwargs)
        except Exception as error:
            shown = presentable(error)
            if shown is error:
                raise
            raise shown from None  # this line goes to the log too: ASCII only
        return printable(answer, log_encodings()) if type(answer) is str else answer

    guarded.bordered = True  # type: ignore[attr-defined]
    guarded.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
    return guarded


def presentable(error: Exception) -> Exception:
    """The exception as ComfyUI can print it: itself, or one of the same type in its place.

    An InputError loses its traceback, because its sentence is complete. Any other one keeps
    it where that can be printed, too; else it goes to the log, escaped.
    """
    encodings = log_encodings()
    message = printable(str(error), encodings)
    if isinstance(error, InputError):
        return InputError(message)
    whole = "".join(traceback.format_exception(error))
    if len(str(error)) <= LONGEST and whole == printable(whole, encodings, len(whole)):
        return error
    logging.error(whole.rstrip())
    try:
        return type(error)(message)
    except Exception:  # a type that is made of something else than a message
        return RuntimeError(f"{type(error).__name__}: {message}")


def log_encodings() -> set[str]:
    """Encodings of the streams that ComfyUI writes to and that raise on what they lack."""
    handlers = logging.getLogger().handlers
    streams = [sys.stdout, sys.stderr, *(getattr(h, "stream", None) for h in handlers)]
    strict = [s for s in streams if getattr(s, "errors", None) == "strict"]
    return {s.encoding for s in strict if s.encoding}


class PrintableRecords(logging.Filter):
    """Makes what our files log fit for the log streams; the records of others pass as they are."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.pathname.startswith(PACK):
            record.msg, record.args = printable(record.getMessage(), log_encodings()), None
        return True


def guard_log() -> None:
    """Let ComfyUI's log handlers pass our records through `PrintableRecords`, once."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(known, PrintableRecords) for known in handler.filters):
            handler.addFilter(PrintableRecords())
