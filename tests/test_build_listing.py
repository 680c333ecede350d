"""What is said about pictures beside them: captions, licences, origins."""

import json
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrag_engine.build import ReadSettings
from arrag_engine.build.listing import MAX_CAPTION, list_folder
from arrag_engine.errors import InputError
from arrag_engine.build.walking import FolderTimes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)


@pytest.fixture
def folder(tmp_path):
    """Three pictures, by their names."""
    for name in ("a.png", "b.jpg", "sub/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def told(folder, settings=None):
    """(caption, licence, origin) by name, and the notes."""
    pictures, notes = list_folder(folder, settings or ReadSettings())
    return {p.name: (p.caption, p.licence, p.origin) for p in pictures}, notes


def metadata(folder, *lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "metadata.jsonl").write_text(text + "\n", encoding="utf-8")


def test_a_text_beside_a_picture_is_its_caption(folder):
    (folder / "a.txt").write_text("\ufeff a red car\n", encoding="utf-8")
    (folder / "sub" / "c.txt").write_bytes(b"caf\xe9")
    facts, notes = told(folder)
    assert facts == {
        "a.png": ("a red car", "", ""),
        "b.jpg": ("", "", ""),
        "sub/c.webp": ("caf\ufffd", "", ""),
    }
    assert notes == []


def test_metadata_tells_captions_licences_and_origins(folder):
    metadata(
        folder,
        {"file_name": "a.png", "text": "one", "licence": "CC0", "source": "here"},
        "",
        {"file_name": "./b.jpg", "caption": "two", "license": "MIT", "url": "http://b"},
        {"file_name": "sub/c.webp", "text": None, "more": [1, 2]},
    )
    facts, notes = told(folder, ReadSettings("mine", "there"))
    assert facts == {
        "a.png": ("one", "CC0", "here"),
        "b.jpg": ("two", "MIT", "http://b"),
        "sub/c.webp": ("", "mine", "there"),
    }
    assert notes == []


def test_the_nearest_word_about_a_picture_is_the_last(folder):
    metadata(folder, *({"file_name": n, "text": "far"} for n in ("a.png", "sub/c.webp")))
    metadata(folder / "sub", {"file_name": "c.webp", "text": "near"})
    assert told(folder)[0]["sub/c.webp"][0] == "near"
    (folder / "a.txt").write_text("beside")
    (folder / "sub" / "c.txt").write_text(" \n")  # says nothing
    facts, _ = told(folder)
    assert (facts["a.png"][0], facts["sub/c.webp"][0]) == ("beside", "near")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"file_name": "a.png"', "not JSON"),
        ("[" * 100_000, "recursion"),
        ("17", "not an object with a file_name"),
        ({"text": "x"}, "not an object with a file_name"),
        ({"file_name": 5, "text": "x"}, "not an object with a file_name"),
        ({"file_name": "none.png", "text": "x"}, "'none.png' is not among the pictures"),
        ({"file_name": "../a.png", "text": "x"}, "'../a.png' is not among the pictures"),
        ({"file_name": "/etc/passwd", "text": "x"}, "'/etc/passwd' is not among the pictures"),
        ({"file_name": "a.png", "text": ["x"]}, "text is not text"),
        ({"file_name": "a.png", "text": "x" * (MAX_CAPTION + 1)}, "65537 characters, at most"),
    ],
)
def test_a_malformed_line_is_reported_with_its_number(folder, line, why):
    metadata(folder, {"file_name": "a.png", "text": "good"}, line)
    facts, [note] = told(folder)
    assert facts["a.png"][0] == "good"
    assert note.startswith("metadata.jsonl line 2: ")
    assert why in note
    assert note.endswith("; the line is ignored")


@given(line=JSON.map(json.dumps) | st.text(max_size=30))
def test_no_line_is_fatal(tmp_path_factory, line):
    folder = tmp_path_factory.mktemp("f")
    (folder / "a.png").touch()
    metadata(folder, line)
    facts, _ = told(folder)
    assert all(isinstance(fact, str) for fact in facts["a.png"])


def test_half_a_character_in_metadata_is_replaced(folder):
    metadata(folder, '{"file_name": "a.png", "text": "x\\ud800y"}')
    assert told(folder)[0]["a.png"][0] == "x?y"


def test_a_caption_that_is_none_is_reported(folder):
    (folder / "a.txt").write_bytes(b"x" * (MAX_CAPTION + 1))
    facts, [note] = told(folder)
    assert facts["a.png"][0] == ""
    assert note == "a.txt: 65537 bytes are too long for a caption; at most 65536; it is ignored"


def test_a_folder_that_cannot_be_looked_into_is_reported(folder, monkeypatch):
    scandir = os.scandir

    def forbidden(path):
        if os.fspath(path) == str(folder / "sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    facts, notes = told(folder)
    assert set(facts) == {"a.png", "b.jpg"}
    assert notes == ["sub: Permission denied; it is ignored"]


def test_pictures_are_listed_in_order_from_all_folders(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.PNG", "a.jpeg", "c.webp", "sub/d.jpg", "notes.txt", "a.txt", "e.gif"):
        (tmp_path / name).touch()
    names = [p.relative_to(tmp_path).as_posix() for p in list_pictures(tmp_path)]
    assert names == ["a.jpeg", "b.PNG", "c.webp", "sub/d.jpg"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_links_to_folders_are_followed_once(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "d.png").touch()
    (folder / "link").symlink_to(elsewhere)
    (folder / "sub" / "back").symlink_to(folder)
    names = [p.relative_to(folder).as_posix() for p in list_pictures(folder)]
    assert names == ["a.png", "b.jpg", "link/d.png", "sub/c.webp"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*none"):
        list_pictures(tmp_path / "none")
