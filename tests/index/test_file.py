"""The index file: whole, or refused with one sentence, whatever was done to it."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from arrag_engine.errors import InputError
from arrag_engine.grid import BORDERS, NEIGHBORHOODS, Grid
from arrag_engine.index import (
    KEY_SPACES,
    KeySpec,
    SourceTable,
    create_index,
    load_index,
    read_header,
    save_index,
)
from tests.tiny import tiny_index, tiny_model

GROWTH = """
import sys
from pathlib import Path
import torch  # what a program imports while it loads is not the index's
from arrag_engine.index import container, load_index, save_index

container.IN_MEMORY = int(sys.argv[3])

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

before = anonymous()
index = load_index(Path(sys.argv[1]))
print(anonymous() - before)
save_index(index, Path(sys.argv[2]))
print(anonymous() - before)
"""


def contents(path):
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def rewritten(index_file, out, tensors=None, header=None, drop=()):
    """The file with some tensors and header fields replaced or left out."""
    old_tensors, old_header = contents(index_file)
    tensors, header = old_tensors | (tensors or {}), old_header | (header or {})
    for table in (tensors, header):
        for name in drop:
            table.pop(name, None)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, out, header)
    return out


@pytest.mark.parametrize("space", KEY_SPACES)
@pytest.mark.parametrize("borders", BORDERS)
@pytest.mark.parametrize("neighborhood", NEIGHBORHOODS)
def test_an_index_is_read_back_as_it_was(tmp_path, model, neighborhood, borders, space):
    model = tiny_model(config=replace(model.config, grid=Grid(7, 7)))
    index = tiny_index(model, 3, 5, KeySpec(neighborhood, borders, space))
    save_index(index, tmp_path / "a.safetensors")
    read = load_index(tmp_path / "a.safetensors")
    assert (read.grid, read.spec) == (index.grid, index.spec)
    assert list(read.sources) == list(index.sources)
    for field in ("tokens", "vectors", "codebook"):
        mine, its = getattr(read, field), getattr(index, field)
        assert mine is its is None or (mine.dtype == its.dtype and np.array_equal(mine, its))
    queries = np.random.default_rng(0).normal(size=(3, index.spec.dim(8)))
    assert np.array_equal(read.lookup(queries, 7).positions, index.lookup(queries, 7).positions)


def test_a_grid_that_is_not_square_is_read_back(tmp_path, model):
    wide = tiny_model(config=replace(model.config, grid=Grid(3, 5)))
    save_index(tiny_index(wide), tmp_path / "a.safetensors")
    assert load_index(tmp_path / "a.safetensors").grid == Grid(3, 5)


def test_an_index_saved_again_is_the_same_file(tmp_path, index_file):
    save_index(load_index(index_file), tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == index_file.read_bytes()


def test_the_fingerprint_tells_contents_and_keys_apart(tmp_path, model, index, index_file):
    def fingerprint(index):
        save_index(index, tmp_path / "a.safetensors")
        return read_header(tmp_path / "a.safetensors")["fingerprint"]

    first = read_header(index_file)["fingerprint"]
    assert fingerprint(index) == first
    assert fingerprint(tiny_index(model, seed=1)) != first
    assert fingerprint(index.rekeyed(KeySpec(position_weight=0.5))) != first


def test_a_view_of_some_pictures_is_not_taken_for_the_index(tmp_path, index):
    with pytest.raises(ValueError, match="save the whole index"):
        save_index(index.restricted(np.array([1])), tmp_path / "a.safetensors")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("in_memory", "least", "most"), [(0, 0, 0.5), (2**30, 0.9, 1.25)])
def test_only_a_large_index_stays_in_its_file(tmp_path, model, in_memory, least, most):
    """Memory of its own that a process takes to load an index and to write it again."""
    index, path = tiny_index(model, 1), tmp_path / "a.safetensors"
    tokens, vectors = (np.repeat(a, 20_000, axis=0) for a in (index.tokens, index.vectors))
    sources = SourceTable.from_sources([index.sources[0]] * 20_000)
    save_index(
        create_index(index.grid, tokens, vectors, index.codebook, sources, structure="flat"), path
    )
    run = subprocess.run(
        [sys.executable, "-c", GROWTH, path, tmp_path / "b.safetensors", str(in_memory)],
        capture_output=True,
        text=True,
    )
    assert run.stderr == ""
    assert least < max(map(int, run.stdout.split())) / path.stat().st_size < most
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()


def test_the_header_tells_counts_without_reading_tensors(index, index_file):
    header = read_header(index_file)
    assert (header["images"], header["patches"]) == ("5", str(index.size))
    assert (header["grid"], header["neighborhood"]) == ("6x6", "causal-4")
    assert (header["structure"], header["search.recall"]) == ("flat", "1.0")


def test_no_pickle_is_needed_to_read_an_index(index_file):
    tensors, header = contents(index_file)
    assert set(tensors) >= {"tokens", "vectors", "codebook", "sources.names", "sources.sha256"}
    assert tensors["tokens"].dtype == np.uint16
    assert len(json.dumps(header)) < 4000


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format": "other"}, "not a patch index .*'other'"),
        ({"version": "3"}, "version '3', this program reads 2"),
        ({"structure": "tree"}, "'vectors', which is not part of such an index"),
        ({"structure": "tree", "key_space": "codebook"}, "'vectors', which is not part"),
        ({"position_weight": "much"}, "position_weight 'much'"),
        ({"position_weight": "nan"}, "position weight is nan"),
        ({"position_weight": "-1"}, "position weight is -1.0"),
        ({"grid": "6x7"}, "tokens is uint16 5x6x6, expected uint16 .x6x7"),
        ({"grid": "0x6"}, "grid '0x6'"),
        ({"grid": "six"}, "grid 'six'"),
        ({"grid": "6x6" * 9999}, "grid '6x66x6"),
        ({"images": "6"}, "announces 6 pictures"),
        ({"images": "9" * 5000}, "announces 99999"),
        ({"patches": "-1"}, "announces 5 pictures and -1 patches"),
        ({"neighborhood": "ring"}, "neighborhood is 'ring'"),
        ({"borders": ""}, "borders is ''"),
        ({"key_space": "pixels"}, "key space is 'pixels'"),
        ({"neighborhood": "causal-8"}, "announces 5 pictures and 100 patches"),
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_is_refused(tmp_path, index_file, header, message):
    path = rewritten(index_file, tmp_path / "a.safetensors", header=header)
    with pytest.raises(InputError, match=message):
        load_index(path)


@pytest.mark.parametrize(
    "name",
    [
        *("grid", "images", "patches", "neighborhood", "borders", "key_space"),
        *("position_weight", "structure", "fingerprint", "tokens", "vectors", "codebook"),
        *(f"sources.{name}" for name in ("names", "names.ends", "captions", "origins")),
        *(f"sources.{name}" for name in ("thumbnails", "thumbnails.ends", "licence_names")),
        *(f"sources.{name}" for name in ("licences", "sizes", "crops", "sha256")),
    ],
)
def test_a_missing_field_or_tensor_is_named(tmp_path, index_file, name):
    path = rewritten(index_file, tmp_path / "a.safetensors", drop=[name])
    with pytest.raises(InputError, match=f"lacks .*{name}"):
        load_index(path)


def broken_arrays():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(64, 8)).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    vectors = np.broadcast_to(unit[:36].reshape(6, 6, 8), (5, 6, 6, 8)).copy()
    nan = vectors.copy()
    nan[4, 5, 5, 7] = np.nan
    tokens = np.zeros((5, 6, 6), np.uint16)
    high = tokens.copy()
    high[2, 3, 4] = 64
    bytes_ = np.zeros(40, np.uint8)
    yield "tokens", high, "code 64 of a codebook of 64"
    yield "tokens", tokens.astype(np.int64), "tokens is int64"
    yield "tokens", tokens.astype(np.float32), "tokens is float32"
    yield "tokens", tokens[:0], "empty"
    yield "tokens", tokens.reshape(5, 36), "tokens is uint16 5x36"
    yield "tokens", tokens[:, :5], "tokens is uint16 5x5x6"
    yield "tokens", tokens[:4], "announces 5 pictures and 100 patches, it holds 4 and 80"
    yield "vectors", vectors[:4], "vectors is float32 4x6x6x8, expected float32 5x6x6x8"
    yield "tokens", np.zeros((), np.uint16), "tokens is uint16"
    yield "codebook", unit.astype(np.float64), "codebook is F64"
    yield "codebook", unit[:0], "codebook of 0"
    yield "codebook", unit[0], "codebook is float32 8"
    yield "codebook", unit[:, :0], "codebook holds rows"
    yield "codebook", unit[:, :4] / np.linalg.norm(unit[:, :4], axis=1)[:, None], "5x6x6x4"
    yield "codebook", unit * 2, "codebook holds rows that are not unit"
    yield "codebook", unit * np.nan, "codebook holds rows that are not unit"
    yield "codebook", unit * np.inf, "codebook holds rows that are not unit"
    yield "vectors", nan, "vectors holds rows that are not unit"
    yield "vectors", vectors * 1.01, "vectors holds rows that are not unit"
    yield "vectors", vectors.astype(np.float16), "vectors is float16"
    yield "vectors", vectors.transpose(0, 3, 1, 2), "vectors is float32 5x8x6x6"
    for name in ("names", "captions", "origins", "thumbnails"):
        name = f"sources.{name}"
        yield name, bytes_.astype(np.uint16), f"{name} is uint16"
        yield name, bytes_.reshape(5, 8), f"{name} is uint8 5x8"
        yield name, bytes_[:0], f"lengths of {name} do not add up"
        for ends in ([8, 16, 24, 32, 41], [-1, 7, 14, 21, 40], [20, 10, 20, 25, 40], [2**62] * 5):
            yield f"{name}.ends", np.array(ends), f"lengths of {name} do not add up"
        yield f"{name}.ends", np.arange(6), f"{name}.ends is int64 6"
        yield f"{name}.ends", np.arange(5, dtype=np.int32), f"{name}.ends is int32"
    yield "sources.licence_names", np.array([67, 67, 255], np.uint8), "licence is not UTF-8"
    yield "sources.licence_names.ends", np.array([1]), "licence_names do not add up"
    yield "sources.licences", np.full(5, 1, np.uint32), "has licence 1 of 1"
    yield "sources.licences", np.zeros(4, np.uint32), "sources.licences is uint32 4"
    yield "sources.sizes", np.full((5, 2), -1, np.int32), "negative size"
    yield "sources.sizes", np.full((5, 2), 9, np.int32), "crop lies outside"
    yield "sources.crops", np.tile(np.array([3, 0, 2, 5], np.int32), (5, 1)), "crop lies outside"
    yield "sources.crops", np.tile(np.array([-1, 0, 2, 5], np.int32), (5, 1)), "crop lies outside"
    yield "sources.crops", np.tile(np.array([0, 0, 13, 5], np.int32), (5, 1)), "crop lies outside"
    yield "sources.sha256", np.zeros((5, 31), np.uint8), "sources.sha256 is uint8 5x31"


@pytest.mark.parametrize(("name", "array", "message"), list(broken_arrays()))
def test_an_array_that_does_not_fit_is_refused(tmp_path, index_file, name, array, message):
    path = rewritten(index_file, tmp_path / "a.safetensors", {name: array})
    with pytest.raises(InputError, match=message):
        load_index(path)


@pytest.mark.parametrize("name", ["more", "sources.more", "line\nbreak"])
def test_a_tensor_that_no_index_has_is_refused(tmp_path, index_file, name):
    path = rewritten(index_file, tmp_path / "a.safetensors", {name: np.zeros((), np.float32)})
    with pytest.raises(InputError, match=f"it holds .*{name[-4:]}.*, which"):
        load_index(path)


def test_an_index_without_findable_patches_is_refused(tmp_path, index_file):
    path = rewritten(index_file, tmp_path / "a.safetensors", header={"neighborhood": "causal-24"})
    with pytest.raises(InputError, match="no patch with neighbours on a 6x6 grid"):
        load_index(path)


def test_an_index_without_findable_patches_is_not_made(model):
    narrow = tiny_model(config=replace(model.config, grid=Grid(6, 2)))
    with pytest.raises(InputError, match=r"no position of a 6x2 grid .* causal-4 .* borders zero"):
        tiny_index(narrow)


@pytest.mark.parametrize("read", [load_index, read_header])
def test_what_is_no_index_file_is_refused(tmp_path, model_file, read):
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "text.safetensors").write_text("hello" * 100)
    for path, message in (
        (tmp_path / "none.safetensors", "there is no index file"),
        (tmp_path, "there is no index file"),
        (tmp_path / "empty.safetensors", "not a readable .safetensors"),
        (tmp_path / "text.safetensors", "not a readable .safetensors"),
        (model_file, "is not a patch index"),
    ):
        with pytest.raises(InputError, match=message):
            read(path)
