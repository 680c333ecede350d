"""An index whose file is cut off, written to, replaced or deleted while it is loaded."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from arrag_engine.errors import InputError
from arrag_engine.index import KeySpec, container, load_index, merge_indexes, save_index
from arrag_engine.index.search import STRUCTURES
from tests.tiny import tiny_index
from tests.tiny_showo import sign_index

CHANGED = "has changed while it was in use; wait until it is written completely"
NO_MAPS = pytest.mark.skipif(sys.platform == "win32", reason="nothing is mapped on Windows")


@pytest.fixture(params=STRUCTURES[1:])
def path(request, tmp_path, model):
    """A file of every search structure."""
    space = "codebook" if request.param == "compact" else "encoder"
    if request.param == "bits":
        index = sign_index(5)
    else:
        index = tiny_index(model, 5, 0, KeySpec(space=space), request.param)
    save_index(index, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


@pytest.fixture
def large(monkeypatch):
    """Every tensor counts as too large for memory."""
    monkeypatch.setattr(container, "IN_MEMORY", 0)


def cut(path):
    os.truncate(path, 1000)


def overwrite(path):
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 100)


def replace(path):
    other = path.with_name("b")
    other.write_bytes(b"something else")
    other.replace(path)


def everything(index):
    """What drawing and editing read of an index."""
    queries = np.zeros((2, index.spec.dim(index.codebook.shape[1])), np.float32)
    queries[1] = 0.3
    found = [index.lookup(queries, 9), index.restricted(np.array([1, 3])).lookup(queries, 9)]
    arrays = [a for f in found for a in f.fields]
    return [a.tolist() for a in arrays], list(index.sources), index.tokens.tolist()


@pytest.mark.parametrize("change", [cut, overwrite, replace, Path.unlink])
def test_what_is_in_memory_stays_as_it_was(path, change):
    index = load_index(path)
    assert index.file is None
    before = everything(index)
    change(path)
    assert everything(index) == before


@NO_MAPS
@pytest.mark.parametrize("change", [replace, Path.unlink])
def test_a_mapped_file_may_be_replaced(path, large, change):
    index = load_index(path)
    assert index.file is not None
    before = everything(index)
    change(path)
    assert everything(index) == before


@NO_MAPS
@pytest.mark.parametrize("change", [cut, overwrite])
def test_a_mapped_file_that_is_written_to_is_an_error_of_one_sentence(path, large, change, model):
    index = load_index(path)
    view = index.restricted(np.array([1]))
    change(path)
    query = np.zeros((1, index.spec.dim(index.codebook.shape[1])), np.float32)
    codebook = index.codebook.copy() if change is overwrite else np.zeros((1, 1), np.float32)
    for use in (
        lambda: index.lookup(query, 3),
        lambda: view.lookup(query, 3),
        lambda: index.check_fits(index.grid, codebook),
        lambda: index.sources.thumbnails[0],
        lambda: index.sources.about(["red"]),
        lambda: merge_indexes([index, index], ["a", "a"]),
    ):
        with pytest.raises(InputError, match=CHANGED):
            use()


@NO_MAPS
def test_a_mapped_index_is_the_one_in_memory(path, monkeypatch):
    in_memory = everything(load_index(path))
    monkeypatch.setattr(container, "IN_MEMORY", 0)
    mapped = load_index(path)
    assert everything(mapped) == in_memory
    save_index(mapped, path.with_name("b"))
    assert path.with_name("b").read_bytes() == path.read_bytes()
    save_index(mapped, path)  # onto itself
    assert everything(load_index(path)) == in_memory


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_handle_stays_open(path):
    index = load_index(path)
    assert path not in [file.resolve() for file in Path("/proc/self/fd").iterdir()]
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert len(index.sources) == 5


def test_a_code_that_is_out_of_range_by_now_is_our_own_error(model):
    index = tiny_index(model, 5)
    index.tokens[:] = len(index.codebook)
    query = np.zeros((1, index.spec.dim(index.codebook.shape[1])), np.float32)
    with pytest.raises(InputError, match="holds code 64 of a codebook of 64: its file has changed"):
        index.lookup(query, 3)
