"""Large tensor files: written in pieces, hashed, read where they lie."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as some
from safetensors import safe_open

from arrag_engine.errors import InputError
from arrag_engine.index import container
from arrag_engine.index.container import DTYPES, Stream, TensorFile, write_tensors

ARRAYS = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: some.arrays(dtype, some.array_shapes(max_dims=3, min_side=0, max_side=5))
)
TABLES = st.dictionaries(st.text("ab.", min_size=1, max_size=4), ARRAYS, max_size=5)


def in_pieces(array, size):
    flat = array.reshape(-1)
    pieces = [flat[i : i + size] for i in range(0, len(flat), size)]
    return Stream(array.dtype.type, array.shape, pieces)


@given(TABLES, st.integers(1, 7))
def test_tensors_come_back_and_pieces_make_no_difference(tmp_path_factory, table, size):
    folder = tmp_path_factory.mktemp("container")
    write_tensors(folder / "a", table, {"format": "x"})
    pieces = {name: in_pieces(array, size) for name, array in table.items()}
    write_tensors(folder / "b", pieces, {"format": "x"})
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    file = TensorFile(folder / "a")
    assert file.names == sorted(table)
    assert file.header["format"] == "x"
    with safe_open(folder / "a", framework="numpy") as other:
        for name, array in table.items():
            for read in (file.tensor(name), other.get_tensor(name)):
                assert (read.dtype, read.shape) == (array.dtype, array.shape)
                assert read.tobytes() == array.tobytes()
            digest = hashlib.sha256(array.tobytes()).hexdigest()
            assert file.header[f"hash.{name}"] == file.hashes()[name] == digest


def test_a_large_array_is_hashed_piece_by_piece(tmp_path, monkeypatch):
    array = np.arange(1000, dtype=np.int64).reshape(100, 10)
    write_tensors(tmp_path / "a", {"x": array}, {})
    monkeypatch.setattr(container, "CHUNK", 300)
    write_tensors(tmp_path / "b", {"x": array}, {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    file = TensorFile(tmp_path / "b")
    assert file.hashes()["x"] == file.header["hash.x"]


def test_what_is_read_cannot_be_written_to(tmp_path):
    write_tensors(tmp_path / "a", {"x": np.arange(3)}, {})
    with pytest.raises(ValueError, match="read-only"):
        TensorFile(tmp_path / "a").tensor("x")[0] = 7


@pytest.mark.parametrize("count", [2, 4])
def test_a_stream_that_breaks_its_promise_leaves_nothing(tmp_path, count):
    stream = Stream(np.uint8, (3,), [np.zeros(count, np.uint8)])
    with pytest.raises(ValueError, match=f"x announced 3 bytes and wrote {count}"):
        write_tensors(tmp_path / "a", {"x": stream}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [b"", b"junk", b"\xff" * 100], ids=["empty", "short", "ff"])
def test_another_kind_of_file_is_refused(tmp_path, data):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"not a readable \.safetensors file .*; copy or build"):
        TensorFile(path)
    with pytest.raises(InputError, match="there is no index file"):
        TensorFile(tmp_path)
