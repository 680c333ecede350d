"""A folder of pictures with captions, as a user would bring it."""

import sys

import numpy as np
import own_pictures
from captions import read
from PIL import Image

from tests.pocket.made import write_archives


def test_pictures_differ_and_captions_name_what_they_show(composer, tmp_path):
    own_pictures.write_pictures(composer, 12, tmp_path)
    pictures = [np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("*.png"))]
    assert len({picture.tobytes() for picture in pictures}) == 12
    for number in range(12):
        said = read((tmp_path / f"{number:02}.txt").read_text(encoding="utf-8").strip())
        assert len(said.things) == 1


def test_the_command_takes_any_emoji_of_the_package(tmp_path, monkeypatch):
    write_archives(tmp_path / "npm")
    arguments = ["gizmo", "🚗", "--count", "3", "--archives", str(tmp_path / "npm")]
    monkeypatch.setattr(sys, "argv", ["own_pictures.py", *arguments, "--out", str(tmp_path / "o")])
    own_pictures.main()
    names = sorted(path.name for path in (tmp_path / "o").iterdir())
    assert names == ["00.png", "00.txt", "01.png", "01.txt", "02.png", "02.txt"]
    assert (tmp_path / "o/00.txt").read_text(encoding="utf-8").startswith("a gizmo")
