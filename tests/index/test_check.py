"""Full validation of an index file finds what loading lets pass."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from arrag_engine.errors import InputError
from arrag_engine.index import KeySpec, check_index, save_index
from arrag_engine.index.thumbnails import contact_sheet, open_thumbnail
from tests.index.test_file import contents, rewritten
from tests.tiny import tiny_index


def findings(path):
    return list(check_index(path, lambda step: lambda done, total: None))


def problems(path):
    return {f.name: f.problem for f in findings(path) if f.problem}


@pytest.mark.parametrize(
    ("structure", "space"), [("flat", "encoder"), ("ivf", "encoder"), ("compact", "codebook")]
)
def test_a_sound_file_has_no_problem(tmp_path, model, structure, space):
    path = tmp_path / "a.safetensors"
    save_index(tiny_index(model, 30, 0, KeySpec(space=space), structure), path)
    names = [f.name for f in findings(path)]
    assert problems(path) == {}
    assert {"hash of tokens", "fingerprint", "texts", "thumbnails", "recall"} <= set(names)


def test_every_bit_that_loading_lets_pass_is_found(tmp_path, index_file):
    """One flipped bit anywhere: refused at load, or found by a hash."""
    data, rng = index_file.read_bytes(), np.random.default_rng(0)
    header = 8 + int.from_bytes(data[:8], "little")
    path = tmp_path / "a.safetensors"
    for place in rng.integers(header, len(data), 60):
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        try:
            found = problems(path)
        except InputError:
            continue
        assert any(name.startswith("hash of ") for name in found), place


def test_a_changed_header_is_found(tmp_path, index_file):
    path = rewritten(index_file, tmp_path / "a.safetensors", header={"borders": "skip"})
    assert problems(path) == {}
    path = rewritten(index_file, path, header={"search.recall": "0.9"})
    assert set(problems(path)) == {"fingerprint"}
    _, header = contents(index_file)
    path = rewritten(index_file, path, header={"hash.tokens": header["hash.vectors"]})
    assert set(problems(path)) == {"hash of tokens", "fingerprint"}
    path = rewritten(index_file, path, drop=["hash.tokens"])
    assert "only one of the tensor and its hash" in problems(path)["hash of tokens"]


def test_a_search_array_of_no_use_is_checked_too(tmp_path, index_file):
    more = {"search.more": np.array(np.nan, np.float32)}
    path = rewritten(index_file, tmp_path / "a.safetensors", more)
    assert set(problems(path)) == {"hash of search.more", "numbers of search.more"}


def changed(index_file, out, name, change):
    array = contents(index_file)[0][name].copy()
    change(array)
    return rewritten(index_file, out, {name: array})


def test_bytes_that_are_no_text_are_found(tmp_path, index_file):
    def spoil(array):
        array[-1] = 255

    path = changed(index_file, tmp_path / "a.safetensors", "sources.captions", spoil)
    assert problems(path)["texts"] == "the caption of picture 4 is no UTF-8"


def test_thumbnails_that_are_no_pictures_are_found(tmp_path, index_file):
    def spoil(array):
        array[:20] = 0

    path = changed(index_file, tmp_path / "a.safetensors", "sources.thumbnails", spoil)
    assert problems(path)["thumbnails"].startswith("picture 0 is not a small readable JPEG")


def jpeg(size):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "JPEG")
    return file.getvalue()


def bomb(side):
    """A small JPEG whose header says that it is a large one."""
    data = bytearray(jpeg((8, 8)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [b"", b"x", jpeg((9, 9))[:200], bomb(65_000), bomb(1025)],
    ids=["empty", "junk", "cut", "bomb", "large"],
)
def test_a_thumbnail_that_is_no_small_jpeg_is_refused(data):
    with pytest.raises(ValueError, match="not a small readable JPEG"):
        open_thumbnail(data)


def test_only_jpeg_is_decoded():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    with pytest.raises(ValueError, match="not a small readable JPEG"):
        open_thumbnail(file.getvalue())
    assert open_thumbnail(jpeg((8, 9))).size == (8, 9)


def test_a_contact_sheet_shows_every_picture_and_grey_where_there_is_none(index):
    sheet = contact_sheet(index.sources)
    colors = {color for _, color in sheet.getcolors(1 << 20)}
    for source in index.sources:
        wanted = open_thumbnail(source.thumbnail).getpixel((4, 4))
        assert wanted in colors
    table = index.sources.unknown(1000)
    assert (204, 204, 204) in {color for _, color in contact_sheet(table).getcolors()}
    assert contact_sheet(table).width == 20 * contact_sheet(table[:1]).width
