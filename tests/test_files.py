"""Whole files or none."""

import errno
import os
import stat
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from arrag_engine.errors import InputError
from arrag_engine.files import atomic_write, read_text


def test_a_file_appears_only_once_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == tmp_path  # a rename cannot cross file systems
    assert path.read_text() == "half"
    assert list(tmp_path.iterdir()) == [path]


def test_an_old_file_is_replaced(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def write_half(path, error):
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), InputError("bad")])
def test_an_exception_keeps_the_old_file_and_leaves_no_other(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)):
        write_half(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")]
)
def test_a_full_disk_is_the_persons_to_mend_and_leaves_nothing(tmp_path, error):
    with pytest.raises(InputError, match=r"cannot write .*a\.txt: No space left.*free some space"):
        write_half(tmp_path / "a.txt", error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["missing/a.txt", "file/a.txt"])
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, place):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"cannot write .*a\.txt: .*choose another folder"),
        atomic_write(tmp_path / place),
    ):
        pytest.fail("there was nothing to write to")


def test_a_folder_in_the_way_is_not_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="cannot write"), atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "a").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_says_who_may_read_what_was_written(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~umask


def test_a_file_system_without_modes_is_written_to(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    for name in ("chmod", "fchmod", "lchmod"):
        monkeypatch.setattr(os, name, refused, raising=False)
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "a.txt").read_text() == "x"


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    name = "é" * 120 + ".txt"
    with atomic_write(tmp_path / name) as temporary:
        temporary.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with (
        pytest.raises(InputError, match=r"cannot write .*name too long"),
        atomic_write(tmp_path / ("x" * 300)),
    ):
        pytest.fail("the name cannot be written")


def test_a_message_names_the_file_and_not_the_temporary_one(tmp_path):
    with (
        pytest.raises(InputError) as caught,
        atomic_write(tmp_path / "a.txt") as temporary,
    ):
        raise SafetensorError(f"No space left for {temporary}")
    assert f"No space left for {tmp_path / 'a.txt'}; free" in str(caught.value)
    assert ".part" not in str(caught.value)


def test_a_file_that_another_program_holds_is_named(tmp_path, monkeypatch):
    def held(*_):
        raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(Path, "replace", held)
    with pytest.raises(InputError, match=r"cannot replace .*a\.txt: .*; close the program"):
        write_half(tmp_path / "a.txt", None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_text_is_read_by_its_byte_order_mark(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_bytes('{"λ": 1}'.encode(encoding))
    assert read_text(path) == '{"λ": 1}'
