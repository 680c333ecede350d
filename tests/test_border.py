"""The border of the nodes: nothing crosses it that a log stream cannot take.

ComfyUI's modules are stand-ins here; `tests/comfyui/test_hostile.py` is the real thing.
"""

import asyncio
import importlib.util
import inspect
import io
import logging
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

ROOT = Path(__file__).parents[1]
PACK = "arrag_pack_under_test"
COMFY = [
    *("comfy", "comfy.cli_args", "comfy.model_management", "comfy.model_patcher", "comfy.ops"),
    *("comfy.utils", "comfy_api", "comfy_api.latest", "folder_paths", "server"),
]
UNPRINTABLE = "old-\udce9 写真"


@pytest.fixture
def pack(monkeypatch, tmp_path):
    """Function: a module of the pack, with stand-ins for ComfyUI's."""
    for name in COMFY:
        monkeypatch.setitem(sys.modules, name, MagicMock())
    api = sys.modules["comfy_api.latest"]
    api.io.ComfyNode = type("ComfyNode", (), {"execute": classmethod(lambda cls: None)})  # pyright: ignore
    api.ComfyExtension = object  # pyright: ignore
    layers = sys.modules["comfy"].ops  # pyright: ignore
    for name in ("CastWeightBiasOp", "manual_cast"):  # what the pack's own layers extend
        setattr(layers, name, type(name, (), {}))
    sys.modules["folder_paths"].models_dir = str(tmp_path)  # pyright: ignore
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location(
        PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    monkeypatch.setitem(sys.modules, PACK, importlib.util.module_from_spec(spec))
    yield lambda name: importlib.import_module(f"{PACK}.nodes.{name}")
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def border(pack):
    return pack("border")


class Narrow:
    """A log stream that takes cp1252 only, as a Windows pipe, in the place of all others."""

    def __init__(self, monkeypatch):
        self.raw = io.BytesIO()
        stream = io.TextIOWrapper(self.raw, encoding="cp1252", errors="strict", write_through=True)
        self.handler = logging.StreamHandler(stream)
        monkeypatch.setattr(logging.getLogger(), "handlers", [self.handler])

    @property
    def lines(self):
        return self.raw.getvalue().decode("cp1252").splitlines()


@pytest.fixture
def narrow(monkeypatch):
    """Function: puts a narrow log stream in place. Pytest has added its own by then."""
    return lambda: Narrow(monkeypatch)


def node(border, method):
    """A node of the pack with this method."""
    made = type("Node", (), {"execute": classmethod(method), "__module__": f"{border.OURS}.made"})
    return border.bordered(made)


def raising(error):
    def method(cls, **_):
        raise error

    return method


def test_every_node_that_comfyui_gets_is_bordered(pack, narrow):
    narrow()
    nodes = asyncio.run(pack("extension").ArragExtension().get_node_list())
    assert len(nodes) >= 10
    methods = pack("border").METHODS
    for node in nodes:
        for name in methods:
            method = getattr(node, name, None)
            if method is not None:
                assert hasattr(method.__func__, "__wrapped__"), f"{node.__name__}.{name}"


def test_every_node_class_of_the_pack_is_handed_to_comfyui(pack):
    """A node may only come from the list that is bordered."""
    extension = pack("extension")
    found = set()
    for path in (ROOT / "nodes").glob("*.py"):
        module = pack(path.stem)
        found |= {
            value
            for value in vars(module).values()
            if isinstance(value, type) and "define_schema" in vars(value)
        }
    assert found == set(extension.NODES)


def test_arguments_stay_visible(border):
    """ComfyUI looks at them to know which values a node checks itself."""

    class Node:
        __module__ = f"{border.OURS}.made"

        @classmethod
        def validate_inputs(cls, model, dtype="auto"):
            return f"{model} {dtype}"

    border.bordered(Node)
    assert inspect.getfullargspec(Node.validate_inputs).args == ["cls", "model", "dtype"]
    assert Node.validate_inputs("a") == "a auto"


def test_inherited_methods_are_bordered_once(border):
    first = node(border, raising(border.InputError(UNPRINTABLE)))
    second = border.bordered(type("Second", (first,), {"__module__": first.__module__}))
    with pytest.raises(border.InputError, match=r"^old-\\udce9 写真$"):
        second.execute()
    assert not hasattr(second.execute.__func__.__wrapped__, "__wrapped__")


def test_an_input_error_is_printable_and_short(border, narrow):
    narrow()
    error = border.InputError(UNPRINTABLE + "x" * 100_000)
    error.__cause__ = ValueError(UNPRINTABLE)
    with pytest.raises(border.InputError) as caught:
        node(border, raising(error)).execute()
    assert str(caught.value).startswith(r"old-\udce9 \u5199\u771fxxx")
    assert len(str(caught.value)) < 2200
    assert caught.value.__suppress_context__


def test_another_exception_keeps_its_type_and_what_can_be_printed(border, narrow):
    narrow()
    border.guard_log()
    plain, unprintable = MemoryError("no room"), MemoryError(UNPRINTABLE)
    with pytest.raises(MemoryError) as caught:
        node(border, raising(plain)).execute()
    assert caught.value is plain
    with pytest.raises(MemoryError, match=r"^old-\\udce9 \\u5199\\u771f$"):
        node(border, raising(unprintable)).execute()


def test_an_exception_that_no_message_makes_becomes_a_runtime_error(border, narrow):
    narrow()
    border.guard_log()
    error = UnicodeEncodeError("utf-8", "写" * 5000, 0, 1, "写" * 5000)
    with pytest.raises(RuntimeError, match=r"^UnicodeEncodeError: ") as caught:
        node(border, raising(error)).execute()
    str(caught.value).encode("cp1252")


def test_answers_in_words_are_printable(border, narrow):
    narrow()
    assert node(border, lambda cls: UNPRINTABLE).execute() == r"old-\udce9 \u5199\u771f"
    assert node(border, lambda cls: True).execute() is True


def test_what_our_files_log_is_printable_and_what_others_log_is_left_alone(border, narrow):
    log = narrow()
    border.guard_log()
    border.guard_log()
    assert len(log.handler.filters) == 1
    for path, told, shown in (
        (border.PACK + "/x.py", UNPRINTABLE, r"a old-\udce9 \u5199\u771f"),
        ("elsewhere.py", "\x1b[1mé", "a \x1b[1mé"),
    ):
        log.handler.handle(logging.LogRecord("n", logging.INFO, path, 1, "a %s", (told,), None))
        assert log.lines[-1] == shown


def test_a_traceback_that_cannot_be_printed_is_logged_escaped(border, narrow):
    log = narrow()
    border.guard_log()
    with pytest.raises(KeyError):
        node(border, raising(KeyError(UNPRINTABLE))).execute()
    assert log.lines[0] == "Traceback (most recent call last):"
    assert log.lines[-1] == r"KeyError: 'old-\udce9 \u5199\u771f'"
