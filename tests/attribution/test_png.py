"""PNG chunks survive a reload; files appear together or not at all."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from arrag_engine.attribution import CHUNK, Credit, Credits
from arrag_engine.attribution.png import png_bytes, write_together
from arrag_engine.errors import InputError
from tests.attribution.strangers import NAMES


def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_attribution_survives_a_reload(name):
    credits = Credits((Credit(name, "", "CC0", "", 0.25),), model=0.75)
    texts = {"prompt": '{"1": {}}', "workflow": '{"nodes": []}', CHUNK: credits.as_json()}
    read = Image.open(io.BytesIO(png_bytes(picture(), texts)))
    assert read.text == texts
    assert json.loads(read.text[CHUNK])["sources"][0]["share"] == 0.25
    assert read.tobytes() == picture().tobytes()


def test_files_appear_together(tmp_path):
    files = {tmp_path / "a.png": b"1", tmp_path / "a.txt": b"2"}
    write_together(files)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_no_file_appears_when_one_cannot_be_written(tmp_path):
    files = {tmp_path / "a.png": b"1", tmp_path / "missing" / "a.txt": b"2"}
    with pytest.raises(InputError, match="cannot write"):
        write_together(files)
    assert list(tmp_path.iterdir()) == []


def test_no_file_appears_when_the_disk_is_full(tmp_path, monkeypatch):
    def full(path, data):
        if data == b"2":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match=r"cannot write .*b\.png: No space left on device"):
        write_together({tmp_path / "a.png": b"1", tmp_path / "b.png": b"2"})
    assert list(tmp_path.iterdir()) == []
