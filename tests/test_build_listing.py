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
    (folder / "sub" / "c.txt").write_text("café", encoding="utf-8")
    facts, notes = told(folder)
    assert facts == {
        "a.png": ("a red car", "", ""),
        "b.jpg": ("", "", ""),
        "sub/c.webp": ("café", "", ""),
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
    assert list(told(tmp_path)[0]) == ["a.jpeg", "b.PNG", "c.webp", "e.gif", "sub/d.jpg"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_links_to_folders_are_followed_once(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "d.png").touch()
    (folder / "link").symlink_to(elsewhere)
    (folder / "sub" / "back").symlink_to(folder)
    assert list(told(folder)[0]) == ["a.png", "b.jpg", "link/d.png", "sub/c.webp"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*none"):
        list_folder(tmp_path / "none", ReadSettings())


def files(folder, **contents):
    """Write files; double underscores in their names are dots."""
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_text(content, encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["a.txt", "a.TXT", "A.Txt", "a.caption", "a.png.txt", "a.png.TXT", "A.PNG.txt"]
)
def test_common_names_of_caption_files(folder, name):
    (folder / name).write_text("one")
    facts, notes = told(folder)
    assert [caption for caption, *_ in facts.values()] == ["one", "", ""]
    assert notes == []


def test_the_first_caption_file_that_says_something_counts(folder):
    for name, said in (("a.txt", " \n"), ("a.caption", "two"), ("a.png.txt", "three")):
        (folder / name).write_text(said)
    assert told(folder)[0]["a.png"][0] == "two"


@pytest.mark.skipif(sys.platform != "linux", reason="case does not matter elsewhere")
def test_pictures_that_differ_in_case_have_captions_of_their_own(folder):
    (folder / "A.png").touch()
    files(folder, a__txt="small", A__txt="large")
    facts, _ = told(folder)
    assert (facts["a.png"][0], facts["A.png"][0]) == ("small", "large")


def test_pictures_of_one_stem_share_a_caption(folder):
    (folder / "a.jpg").touch()
    files(folder, a__txt="both")
    facts, _ = told(folder)
    assert facts["a.png"][0] == facts["a.jpg"][0] == "both"


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_of_a_spreadsheet(folder, mark):
    rows = [["file_name", "text", "licence"], ["a.png", '"one, two; three"', "CC0"]]
    rows += [["sub\\c.webp", "three", ""], ["none.png", "four", ""]]
    text = "\r\n".join(mark.join(row) for row in rows)
    (folder / "Metadata.CSV").write_bytes(text.encode("utf-16"))
    facts, notes = told(folder, ReadSettings("mine"))
    assert facts["a.png"] == ("one, two; three", "CC0", "")
    assert facts["sub/c.webp"] == ("three", "mine", "")
    assert notes == [
        "Metadata.CSV line 4: 'none.png' is not among the pictures; the line is ignored"
    ]


def test_of_two_tables_lines_of_json_have_the_last_word(folder):
    files(folder, metadata__csv="file_name,text,source\na.png,rows,there\nb.jpg,rows,\n")
    metadata(folder, {"file_name": "a.png", "text": "lines"})
    facts, _ = told(folder)
    assert (facts["a.png"], facts["b.jpg"][0]) == (("lines", "", "there"), "rows")


def test_a_cell_without_end_is_reported(folder):
    files(folder, metadata__csv='file_name,text\na.png,one\nb.jpg,"' + "x" * 200_000)
    facts, [note] = told(folder)
    assert facts["a.png"][0] == "one"
    assert "metadata.csv: field larger than field limit" in note


def test_captions_that_are_not_utf_8_are_read_and_named(folder):
    (folder / "a.txt").write_bytes("a café’s cat".encode("cp1252"))
    (folder / "b.txt").write_bytes("一只猫".encode("gbk"))
    (folder / "sub" / "c.txt").write_bytes("une forêt".encode("utf-16"))
    facts, notes = told(folder)
    assert [caption for caption, *_ in facts.values()] == ["a café’s cat", "一只猫", "une forêt"]
    assert notes == [
        "1 text is not UTF-8 and read as cp1252, the most probable encoding; the first is a.txt",
        "1 text is not UTF-8 and read as gb18030, the most probable encoding; the first is b.txt",
    ]


def test_every_file_is_a_picture_or_counted(folder):
    for name in ("d.jfif", "e.jpe", "f.TIF", "g.avif", "notes.txt", "x.psd1", "y.db", "z.DB", "n"):
        (folder / name).touch()
    (folder / "bare").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "h.jpg_large").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "preview.thm").write_bytes(b"\xff\xd8\xff\xe0")
    facts, notes = told(folder)
    wanted = ["a.png", "b.jpg", "bare", "d.jfif", "e.jpe", "f.TIF", "g.avif", "h.jpg_large"]
    assert list(facts) == [*wanted, "sub/c.webp"]
    assert notes == [
        "left out because no pictures: 1 without suffix, 2 .db, 1 .psd1, 1 .thm, 1 .txt"
    ]


def test_hidden_files_and_folders_are_left_out_and_counted(folder):
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", "sub/.thumbs"):
        (folder / name).mkdir()
        (folder / name / "a.png").touch()
    for name in ("._a.png", ".DS_Store"):
        (folder / name).touch()
    facts, notes = told(folder)
    assert list(facts) == ["a.png", "b.jpg", "sub/c.webp"]
    assert notes == ["left out because hidden: 4 folders, 2 files"]


def test_a_folder_that_is_hidden_itself_may_be_chosen(tmp_path):
    (tmp_path / ".mine").mkdir()
    (tmp_path / ".mine" / "a.png").touch()
    assert list(told(tmp_path / ".mine")[0]) == ["a.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes there")
def test_a_pipe_is_not_read_for_a_caption(folder):
    os.mkfifo(folder / "a.txt")
    os.mkfifo(folder / "pipe")
    _, notes = told(folder)
    assert notes == [
        "a.txt: not a file; it is ignored",
        "left out because no pictures: 1 without suffix",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_of_a_folder_and_a_link_to_it_the_folder_names_the_pictures(folder):
    (folder / "alias").symlink_to(folder / "sub")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    facts, _ = told(folder)
    assert list(facts) == ["a.png", "b.jpg", "loop.png", "sub/c.webp"]
