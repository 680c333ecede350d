"""Tensors from files: read lazily, executed never."""

import json
import os
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from arrag_engine.checkpoints.weights import find_weight_files, open_weights, read_json
from arrag_engine.errors import InputError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
ONE = torch.zeros(3)


def write(path, tensors=TENSORS):
    if path.suffix == ".safetensors":
        save_file(tensors, path, {"kind": "test"})
    else:
        torch.save(tensors, path)
    return path


def touch(folder, *names):
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
def test_shapes_are_known_and_tensors_read_one_by_one(tmp_path, name):
    weights = open_weights([write(tmp_path / name)])
    assert weights.shapes == {"a": (2, 3), "b": (4,)}
    for key, tensor in TENSORS.items():
        assert torch.equal(weights.read(key), tensor)
        assert weights.read(key).dtype == tensor.dtype


def test_shards_are_one_table(tmp_path):
    files = [
        write(tmp_path / f"{name}.safetensors", {name: tensor}) for name, tensor in TENSORS.items()
    ]
    weights = open_weights(files)
    assert set(weights.shapes) == {"a", "b"}
    assert torch.equal(weights.read("a"), TENSORS["a"])


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
def test_a_dtype_that_is_not_for_weights_is_refused_when_read(tmp_path, name, dtype):
    weights = open_weights([write(tmp_path / name, {"a": torch.zeros(2).to(dtype)})])
    with pytest.raises(InputError, match=f"a is {dtype}; only float32"):
        weights.read("a")


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
@pytest.mark.parametrize("keep", [0, 5, 60, 0.5, -1])
def test_a_truncated_file_is_refused(tmp_path, name, keep):
    path = write(tmp_path / name, {"a": torch.zeros(300)})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if 0 < keep < 1 else keep])
    with pytest.raises(InputError, match=f"{name} is truncated"):
        open_weights([path])


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_stays_mapped_or_open(tmp_path, name):
    path = write(tmp_path / name, {"a": torch.zeros(100_000)})
    weights = open_weights([path])
    kept = weights.read("a")
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert path not in [file.resolve() for file in Path("/proc/self/fd").iterdir()]
    path.unlink()
    assert not kept.any()


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
def test_a_file_that_is_cut_after_it_was_opened_is_an_error(tmp_path, name):
    path = write(tmp_path / name, {"a": torch.zeros(100_000)})
    weights = open_weights([path])
    os.truncate(path, 10_000)
    with pytest.raises(InputError, match="has changed while it was in use; wait until it is"):
        weights.read("a")


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "old.bin"])
def test_some_rows_are_read_alone(tmp_path, name):
    path, rows = tmp_path / name, torch.arange(12.0).view(4, 3)
    if name == "old.bin":
        torch.save({"a": rows}, path, _use_new_zipfile_serialization=False)
    else:
        write(path, {"a": rows})
    weights = open_weights([path])
    assert torch.equal(weights.read("a", 2), rows[:2])
    assert torch.equal(weights.read("a", 9), rows)


def test_tensors_of_a_bin_file_may_be_views_of_others(tmp_path):
    whole = torch.arange(24.0).view(4, 6)
    views = {"w": whole, "t": whole.t(), "part": whole[1:3, ::2], "row": whole[0].expand(3, 6)}
    views |= {"none": whole[:0], "number": whole[2, 3], "half": torch.ones(3).half()}
    weights = open_weights([write(tmp_path / "w.bin", views)])
    for name, tensor in views.items():
        assert weights.shapes[name] == tuple(tensor.shape)
        assert torch.equal(weights.read(name), tensor)


def test_the_bin_files_of_older_pytorch_load(tmp_path):
    torch.save(TENSORS, tmp_path / "w.bin", _use_new_zipfile_serialization=False)
    weights = open_weights([tmp_path / "w.bin"])
    for key, tensor in TENSORS.items():
        assert torch.equal(weights.read(key), tensor)


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (b"<!DOCTYPE html>\n<html>", "is a web page"),
        (b"GGUF\3\0\0\0", "is a GGUF file"),
    ],
    ids=["lfs", "html", "gguf"],
)
def test_what_is_found_in_the_place_of_weights_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is .*{message.removeprefix('is ')}"):
        open_weights([tmp_path / name])


class Bomb:
    """Unpickling this would create a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    target = tmp_path / "exploded"
    path = write(tmp_path / "w.bin", {"a": torch.zeros(2), "b": Bomb(target)})
    with pytest.raises(InputError, match="holds more than tensors"):
        open_weights([path])
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [ONE, [ONE], {"state_dict": {"a": ONE}}, {"a": 3}, {0: ONE}],
    ids=["tensor", "list", "nested", "number", "numbered"],
)
def test_a_bin_file_of_something_else_is_refused(tmp_path, content):
    with pytest.raises(InputError, match="does not hold a table of tensors"):
        open_weights([write(tmp_path / "w.bin", content)])


@pytest.mark.parametrize("tensor", [torch.zeros(3, 3).to_sparse(), torch.zeros(3, device="meta")])
def test_a_tensor_that_is_not_plain_is_refused(tmp_path, tensor):
    path = write(tmp_path / "w.bin", {"a": tensor})
    with pytest.raises(InputError):
        open_weights([path]).read("a")


@pytest.mark.parametrize(
    ("present", "wanted"),
    [
        (["model.safetensors"], ["model.safetensors"]),
        (["pytorch_model.bin"], ["pytorch_model.bin"]),
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["optimizer.bin", "pytorch_model.bin"], ["pytorch_model.bin"]),
        (
            ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
    ],
    ids=str,
)
def test_the_weight_files_of_a_folder_are_found(tmp_path, present, wanted):
    touch(tmp_path, *present)
    assert [file.name for file in find_weight_files(tmp_path)] == wanted


def test_a_folder_of_another_format_says_so(tmp_path):
    touch(tmp_path, "config.json", "model-q4.gguf")
    with pytest.raises(InputError, match=r"model-q4\.gguf is a GGUF file, which this program does"):
        find_weight_files(tmp_path)


def test_a_folder_without_weights_says_what_goes_there(tmp_path):
    touch(tmp_path, "config.json")
    with pytest.raises(InputError, match=r"no model\*\.safetensors and no pytorch_model\*\.bin"):
        find_weight_files(tmp_path)


@pytest.mark.parametrize("record", ["data.pkl", "byteorder", "data/0"])
def test_a_compressed_bin_is_refused(tmp_path, record):
    """PyTorch compresses none; some kilobytes could stand for any amount of memory."""
    source, path = tmp_path / "whole.bin", tmp_path / "w.bin"
    torch.save({"a": torch.zeros(2)}, source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            swollen = info.filename.endswith(f"/{record}")
            method = zipfile.ZIP_DEFLATED if swollen else zipfile.ZIP_STORED
            new.writestr(info.filename, bytes(2**24) if swollen else old.read(info), method)
    assert path.stat().st_size < 2**16
    with pytest.raises(InputError, match=f"{record}' in it is compressed"):
        open_weights([path])


def with_index(folder, weight_map, stem="model.safetensors"):
    (folder / f"{stem}.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("stem", "suffix"), [("model.safetensors", "safetensors"), ("pytorch_model.bin", "bin")]
)
def test_an_index_says_which_shards_belong_together(tmp_path, stem, suffix):
    touch(tmp_path, f"x-1.{suffix}", f"x-2.{suffix}", f"model-stray.{suffix}")
    with_index(tmp_path, {"a": f"x-2.{suffix}", "b": f"x-1.{suffix}", "c": f"x-2.{suffix}"}, stem)
    found = [file.name for file in find_weight_files(tmp_path)]
    assert found == [f"x-1.{suffix}", f"x-2.{suffix}"]


def test_a_missing_shard_is_named(tmp_path):
    touch(tmp_path, "x-1.safetensors")
    with_index(tmp_path, {"a": "x-1.safetensors", "b": "x-2.safetensors"})
    with pytest.raises(
        InputError, match=r"lacks x-2\.safetensors, which model\.safetensors\.index"
    ):
        find_weight_files(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", "", "x.pkl", None, 7, []],
    ids=str,
)
def test_an_index_cannot_name_files_elsewhere(tmp_path, name):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    touch(tmp_path, "x.safetensors")
    touch(folder / "sub", "x.safetensors")
    with_index(folder, {"a": name})
    with pytest.raises(InputError, match="is not a weight file in its folder"):
        find_weight_files(folder)


def test_a_shard_with_too_long_a_name_is_refused(tmp_path):
    with_index(tmp_path, {"a": "x" * 300 + ".safetensors"})
    with pytest.raises(InputError, match=r"^cannot read .*; choose another path$"):
        find_weight_files(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": null}'])
def test_an_index_without_a_map_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match="no weight_map"):
        find_weight_files(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"\xff\xfe{}", b"[" * 100_000])
def test_json_that_is_no_object_is_refused_by_name(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json (is not readable JSON|does not hold)"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_may_have_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes('{"é": 1}'.encode(encoding))
    assert read_json(tmp_path / "a.json") == {"é": 1}


def test_a_pointer_in_the_place_of_json_is_named(tmp_path):
    (tmp_path / "a.json").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(InputError, match=r"a\.json is a Git LFS pointer"):
        read_json(tmp_path / "a.json")
