"""Imports point one way, and the engine stands alone."""

import ast
from pathlib import Path

import pytest

import arrag_engine

ROOT = Path(arrag_engine.__file__).parent
LAYERS = [
    {"errors", "threads"},
    {"bounds"},
    {"paths"},
    {"grid", "settings", "codebook"},
    {"files", "locks", "sampling"},
    {"tensor_file", "images"},
    {"models"},
    {"faid"},
    {"index"},
    {"retrieval"},
    {"decode"},
    {"likelihood"},
    {"editing", "attribution", "report"},
    {"checkpoints", "captions"},
    {"recommended"},
    {"layers"},
    {"session"},
    {"outpainting"},
    {"build", "shipped"},
    {"train"},
    {"verify"},
    {"evaluate"},
    {"calibrate", "api"},
    {"cli"},
    {"__main__"},
]
"""A module may import from the layers before its own."""
ALLOWED = {
    "numpy",
    "torch",
    "faiss",
    "safetensors",
    "PIL",
    "einops",
    "tokenizers",
    "tqdm",
}
OPTIONAL = {"attribution": {"c2pa", "cryptography"}, "index": {"ray"}}
"""Only these name them, and import them when they are used: `test_light_imports.py`."""
MODULES = sorted(ROOT.rglob("*.py"))
DATA = sorted((ROOT / "shipped").rglob("*"))


def unit_of(path):
    """The module of the engine that a file belongs to; a subpackage counts as one."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path):
    """(name, level) of everything imported anywhere in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node.level
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.name, node.level) for alias in node.names)


def engine_units(path):
    """Modules of the engine that a file imports, other than its own."""
    depth = len(path.relative_to(ROOT).parts)
    for name, level in imports_of(path):
        first = name.split(".")[0]
        if level == depth:
            yield first
        assert level <= depth, f"{path} reaches out of the engine"
        assert level or first != "arrag_engine", f"{path} imports the engine by its full name"


def layer_of(unit):
    return next(i for i, layer in enumerate(LAYERS) if unit in layer)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_to_lower_layers_only(path):
    if unit_of(path) == "__init__":
        assert list(imports_of(path)) in ([], [("importlib", 0)])
        return
    for unit in engine_units(path):
        assert layer_of(unit) < layer_of(unit_of(path)), f"{path.name} imports {unit}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_engine_needs_nothing_but_its_requirements(path):
    import sys

    outside = {name.split(".")[0] for name, level in imports_of(path) if level == 0}
    optional = OPTIONAL.get(unit_of(path), set())
    assert outside - ALLOWED - optional - set(sys.stdlib_module_names) == set()


def test_the_engine_stands_without_scripts_and_ships_no_benchmark():
    for path in MODULES:
        assert "scripts" not in {name.split(".")[0] for name, _ in imports_of(path)}, path
    shipped = {path.relative_to(ROOT / "shipped").as_posix() for path in DATA if path.is_file()}
    assert shipped == {
        *(
            f"{folder}/{name}.safetensors"
            for folder in ("models", "indexes", "adapters")
            for name in ("pocket", "pocket-o")
        ),
        "indexes/pocket-small.safetensors",
    }


def test_pickle_and_evaluation_stay_out():
    for path in MODULES:
        assert not {name for name, _ in imports_of(path)} & {"pickle", "marshal", "shelve", "dill"}
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"eval", "exec", "__import__"}, path
