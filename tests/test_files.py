"""Whole files or none."""

import errno
import stat
import sys

import pytest
from safetensors import SafetensorError

from arrag_engine.errors import InputError
from arrag_engine.files import atomic_write


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
def test_others_may_read_what_was_written(tmp_path):
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644
