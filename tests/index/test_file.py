"""The index file: whole, or refused with one sentence, whatever was done to it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from arrag_engine.errors import InputError
from arrag_engine.grid import BORDERS, NEIGHBORHOODS, Grid
from arrag_engine.index import KEY_SPACES, KeySpec, load_index, read_header, save_index
from tests.tiny import tiny_index, tiny_model


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


def packed(value):
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def source_tables(index_file):
    return json.loads(contents(index_file)[0]["sources"].tobytes())


@pytest.mark.parametrize("space", KEY_SPACES)
@pytest.mark.parametrize("borders", BORDERS)
@pytest.mark.parametrize("neighborhood", NEIGHBORHOODS)
def test_an_index_is_read_back_as_it_was(tmp_path, model, neighborhood, borders, space):
    index = tiny_index(model, 3, 5, KeySpec(neighborhood, borders, space))
    save_index(index, tmp_path / "a.safetensors")
    read = load_index(tmp_path / "a.safetensors")
    assert (read.grid, read.spec, read.sources) == (index.grid, index.spec, index.sources)
    for field in ("tokens", "vectors", "codebook"):
        mine, its = getattr(read, field), getattr(index, field)
        assert mine is its is None or (mine.dtype == its.dtype and np.array_equal(mine, its))
    queries = np.random.default_rng(0).normal(size=(3, 8 * len(NEIGHBORHOODS[neighborhood])))
    assert np.array_equal(read.search(queries, 7).ids, index.search(queries, 7).ids)


def test_a_grid_that_is_not_square_is_read_back(tmp_path, model):
    wide = tiny_model(config=replace(model.config, grid=Grid(3, 5)))
    save_index(tiny_index(wide), tmp_path / "a.safetensors")
    assert load_index(tmp_path / "a.safetensors").grid == Grid(3, 5)


def test_names_captions_and_thumbnails_of_all_kinds_are_read_back(tmp_path, index):
    sources = [
        replace(source, name=f"ä/{i} \n.png", caption="日本 \0 🍎" * i, thumbnail=b"\xff" * (i % 3))
        for i, source in enumerate(index.sources)
    ]
    save_index(replace(index, sources=sources), tmp_path / "a.safetensors")
    assert load_index(tmp_path / "a.safetensors").sources == sources


def test_the_header_tells_counts_without_reading_tensors(index, index_file):
    header = read_header(index_file)
    assert (header["images"], header["patches"]) == ("5", str(index.size))
    assert (header["grid"], header["neighborhood"]) == ("6x6", "causal-4")


def test_no_pickle_is_needed_to_read_an_index(index_file):
    tensors, header = contents(index_file)
    assert set(tensors) >= {"tokens", "vectors", "codebook", "sources", "thumbnails"}
    assert tensors["tokens"].dtype == np.uint16
    assert len(json.dumps(header)) < 1000


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format": "other"}, "not a patch index .*'other'"),
        ({"version": "2"}, "version '2', this program reads 1"),
        ({"grid": "6x7"}, "tokens is uint16 5x6x6, expected uint16 .x6x7"),
        ({"grid": "0x6"}, "grid '0x6'"),
        ({"grid": "six"}, "grid 'six'"),
        ({"grid": "6x6" * 9999}, "grid '6x66x6"),
        ({"images": "6"}, "promises 6 pictures"),
        ({"images": "9" * 5000}, "promises 99999"),
        ({"patches": "-1"}, "promises 5 pictures and -1 patches"),
        ({"neighborhood": "ring"}, "neighborhood is 'ring'"),
        ({"borders": ""}, "borders is ''"),
        ({"key_space": "pixels"}, "key space is 'pixels'"),
        ({"neighborhood": "causal-8"}, "promises 5 pictures and 100 patches"),
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
        *("tokens", "vectors", "codebook", "sources", "thumbnails", "thumbnail_ends"),
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
    yield "tokens", tokens[:4], "vectors is float32 5x6x6x8, expected float32 4x6x6x8"
    yield "tokens", np.zeros((), np.uint16), "tokens is uint16"
    yield "codebook", unit.astype(np.float64), "codebook is float64"
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
    yield "sources", bytes_.astype(np.int8), "sources is int8"
    yield "sources", bytes_.reshape(5, 8), "sources is uint8 5x8"
    yield "thumbnails", bytes_, "thumbnails do not add up"
    yield "thumbnails", bytes_[:0], "thumbnails do not add up"
    yield "thumbnail_ends", np.arange(5), "thumbnails do not add up"
    yield "thumbnail_ends", np.full(5, 2**62), "thumbnails do not add up"
    yield "thumbnail_ends", np.array([-1, 7, 14, 21, 30]), "thumbnails do not add up"
    yield "thumbnail_ends", np.array([20, 10, 20, 25, 30]), "thumbnails do not add up"
    yield "thumbnail_ends", np.arange(6), "thumbnail_ends is int64 6"
    yield "thumbnail_ends", np.arange(5, dtype=np.int32), "thumbnail_ends is int32"


@pytest.mark.parametrize(("name", "array", "message"), list(broken_arrays()))
def test_an_array_that_does_not_fit_is_refused(tmp_path, index_file, name, array, message):
    path = rewritten(index_file, tmp_path / "a.safetensors", {name: array})
    with pytest.raises(InputError, match=message):
        load_index(path)


def broken_sources(tables):
    def with_first(**changes):
        return packed([tables[0] | changes, *tables[1:]])

    yield "not JSON", np.frombuffer(b"[{]", np.uint8)
    yield "not UTF-8", np.frombuffer(b'["\xff\xfe"]', np.uint8)
    yield "too deep", np.frombuffer(b"[" * 100_000, np.uint8)
    yield "empty", np.zeros(0, np.uint8)
    yield "huge number", np.frombuffer(b"[" + b"9" * 10_000 + b"]", np.uint8)
    yield "no list", packed({"0": tables[0]})
    yield "too few", packed(tables[1:])
    yield "too many", packed([*tables, tables[0]])
    yield "a null", packed([None, *tables[1:]])
    yield "a string", packed(["name", *tables[1:]])
    yield "another field", with_first(thumbnail="x")
    yield "name no text", with_first(name=7)
    yield "licence null", with_first(licence=None)
    yield "width zero", with_first(width=0)
    yield "width negative", with_first(width=-3)
    yield "width fraction", with_first(width=1.5)
    yield "width true", with_first(width=True)
    yield "height huge", with_first(height=2**31)
    yield "field missing", packed([{"name": "a"}, *tables[1:]])
    yield "text no file can hold", with_first(name="\ud800")


def test_a_malformed_table_of_sources_is_refused(tmp_path, index_file):
    accepted = []
    for what, array in broken_sources(source_tables(index_file)):
        path = rewritten(index_file, tmp_path / "a.safetensors", {"sources": array})
        try:
            load_index(path)
            accepted.append(what)
        except InputError as error:
            assert "table of sources" in str(error)  # noqa: PT017
    assert accepted == []


def test_an_index_without_findable_patches_is_refused(tmp_path, model):
    narrow = tiny_model(config=replace(model.config, grid=Grid(6, 2)))
    save_index(tiny_index(narrow), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="no patch with neighbours on a 6x2 grid"):
        load_index(tmp_path / "a.safetensors")


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
