"""Pickles whose tuples would take for ever to hash are refused by their instructions."""

import io
import pickle
import zipfile

import pytest
import torch

from arrag_engine.checkpoints.pickles import LARGEST_TUPLE, check_pickle
from arrag_engine.checkpoints.weights import open_weights
from arrag_engine.errors import InputError


def doubled(count):
    """{(((), ()), ((), ())): 1} and so on: each tuple holds the former one twice."""
    value = ()
    for _ in range(count):
        value = (value, value)
    return value


def hostile(count):
    """A pickle of a table with such a key, made without hashing it."""
    return b"\x80\x02}" + pickle.dumps(doubled(count), 2)[2:-1] + b"K\x01s."


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_checkpoints_pass(protocol):
    table = {f"layer.{i}": ((3, 4), (4, 1), {"a": [1, (2,)]}, b"x", 1.5, None) for i in range(500)}
    check_pickle(io.BytesIO(pickle.dumps(table, protocol)))
    check_pickle(io.BytesIO(pickle.dumps([tuple(range(50)), {(1, 2): frozenset({3})}], protocol)))


@pytest.mark.parametrize("protocol", range(6))
def test_sizes_are_those_of_the_tuples_written_out(protocol):
    most = LARGEST_TUPLE.bit_length() - 2
    check_pickle(io.BytesIO(pickle.dumps(doubled(most), protocol)))
    with pytest.raises(ValueError, match="a tuple in it has more than 10000 values"):
        check_pickle(io.BytesIO(pickle.dumps(doubled(most + 2), protocol)))


@pytest.mark.parametrize("data", [b"", b"abc", b"\x80\x02s.", b"\x80\x02}K\x01s", b"2."])
def test_what_is_no_pickle_is_an_error_of_ours(data):
    with pytest.raises(ValueError, match=r"."):
        check_pickle(io.BytesIO(data))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_with_such_a_key_is_refused_at_once(tmp_path, zipped):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=zipped)
    assert open_weights([path]).shapes == {"a": (2,)}
    if zipped:
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in records.items():
                archive.writestr(name, hostile(60) if name.endswith("data.pkl") else data)
    else:
        path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + hostile(60))
    with pytest.raises(InputError, match=r"holds more than tensors \(a tuple in it has more than"):
        open_weights([path])
