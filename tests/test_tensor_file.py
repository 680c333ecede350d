"""The reader of `.safetensors` headers, against the reference reader."""

import json
import os
import random

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from arrag_engine.errors import InputError
from arrag_engine.tensor_file import read_bytes, read_table

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "c": torch.zeros(0, 4),
    "d": torch.tensor(7, dtype=torch.int64),
}
VALUES = [0, 1, 2, 3, -1, 2**70, 1.0, True, None, "1", [], [2, 3], [0, 24], [24, 0], [3, 2], {}]


@pytest.fixture
def path(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors", {"kind": "test", "λ": "é"})
    return tmp_path / "a.safetensors"


def read(path, name):
    table = read_table(path)
    place = table.places[name]
    data = np.empty(place.size, np.uint8)
    read_bytes(path, table.state, place.start, data)
    return data.tobytes()


def test_names_shapes_bytes_and_metadata_are_those_of_the_reference(path):
    table = read_table(path)
    with safe_open(path, "pt") as file:
        assert table.metadata == file.metadata()
        assert set(table.places) == set(file.keys())
        for name, place in table.places.items():
            assert place.shape == tuple(file.get_slice(name).get_shape())
            assert place.dtype == file.get_slice(name).get_dtype()
            wanted = file.get_tensor(name).contiguous().view(-1).view(torch.uint8)
            assert read(path, name) == wanted.numpy().tobytes()


def damaged(data, rng):
    """A variant of a file with other header entries, or with bytes changed, cut off or added."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.3:
        data = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(8 + length)] = rng.randrange(256)
        return bytes(data)
    if rng.random() < 0.2:
        return data[: rng.randrange(len(data))] + rng.randbytes(rng.randrange(3))
    header = json.loads(data[8 : 8 + length])
    for _ in range(rng.randrange(1, 3)):
        name = rng.choice(sorted(header))
        if rng.random() < 0.2:
            header[name] = rng.choice(VALUES)
        elif isinstance(header[name], dict) and header[name]:
            key = rng.choice(sorted(header[name]))
            header[name][key] = rng.choice([*VALUES, "F32", "I16", "F4", "F6_E2M3", "X"])
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def shapes_by_reference(path):
    with safe_open(path, "pt") as file:
        return {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118


def test_a_damaged_file_is_refused_where_the_reference_refuses_it(path, pytestconfig):
    data, refused = path.read_bytes(), 0
    for seed in range(count := pytestconfig.getoption("mutations") * 5):
        path.write_bytes(damaged(data, random.Random(seed)))
        try:
            ours = {name: place.shape for name, place in read_table(path).places.items()}
        except ValueError:  # InputErrors too
            ours = None
        try:
            theirs = shapes_by_reference(path)
        except (SafetensorError, OSError):
            theirs = None
        assert ours == theirs, f"mutation {seed}"
        refused += ours is None
    assert count / 2 < refused


@pytest.mark.parametrize("change", ["cut", "grown", "touched", "gone"])
def test_a_file_that_changes_after_its_table_was_read_is_an_error(path, change):
    table = read_table(path)
    place = table.places["a"]
    if change == "cut":
        with path.open("r+b") as file:
            file.truncate(place.start + 3)
    elif change == "grown":
        with path.open("ab") as file:
            file.write(b"x")
    elif change == "touched":
        os.utime(path, ns=(0, 0))
    else:
        path.unlink()
    with pytest.raises(InputError, match=r"has changed while it was|cannot read .*: No such"):
        read_bytes(path, table.state, place.start, np.empty(place.size, np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "Git LFS pointer.*lfs pull",
        ),
        (b"\n  <!DOCTYPE html><html></html>", "is a web page saved under that name"),
        (b"\xef\xbb\xbf<html>", "is a web page"),
        (b"GGUF\x03\0\0\0" + b"\0" * 600, "is a GGUF file, which this program does not read"),
    ],
    ids=["lfs", "html", "html with a mark", "gguf"],
)
def test_another_kind_of_file_is_named(tmp_path, content, message):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_table(path)
