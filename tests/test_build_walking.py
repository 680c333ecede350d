"""Times of folders, which tell whether something was added to one or taken away."""

import os
import sys

import pytest

from arrag_engine.build import walking
from arrag_engine.build.walking import FolderTimes


@pytest.fixture
def folder(tmp_path):
    """Two levels, changed long ago."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b"):
        os.utime(path, (1e9, 1e9))
    return tmp_path


def test_subfolders_are_named_without_hidden_ones(folder):
    assert FolderTimes().subfolders(str(folder)) == (10**18, ["a"])
    assert FolderTimes().subfolders(str(folder / "none")) == (0, [])


@pytest.mark.parametrize("place", ["", "a", "a/b"])
def test_a_new_file_changes_the_state(folder, place):
    times = FolderTimes()
    before = times.state(str(folder))
    assert times.state(str(folder)) == before
    (folder / place / "new.png").touch()
    assert times.state(str(folder)) != before


def test_only_times_of_folders_are_read_again(folder, monkeypatch):
    times = FolderTimes()
    (folder / "a" / "x.png").touch()
    os.utime(folder / "a", (1e9, 1e9))
    before = times.state(str(folder))
    read, stat = [], os.stat

    def watched(path, *args, **more):
        read.append(os.fspath(path))
        return stat(path, *args, **more)

    monkeypatch.setattr(os, "stat", watched)
    monkeypatch.setattr(os, "scandir", None)
    assert times.state(str(folder)) == before
    assert read == [str(folder), str(folder / "a"), str(folder / "a" / "b")]


def test_what_has_just_changed_is_looked_into_again(folder, monkeypatch):
    """Another change may get the same time."""
    times = FolderTimes()
    (folder / "new").mkdir()
    stamp = os.stat(folder).st_mtime_ns
    assert times.subfolders(str(folder)) == (stamp, ["a", "new"])
    (folder / "newer").mkdir()
    os.utime(folder, ns=(stamp, stamp))
    assert times.subfolders(str(folder)) == (stamp, ["a", "new", "newer"])
    monkeypatch.setattr(walking, "SETTLED", -(10**18))
    times.subfolders(str(folder))
    (folder / "newest").mkdir()
    os.utime(folder, ns=(stamp, stamp))
    assert times.subfolders(str(folder)) == (stamp, ["a", "new", "newer"])


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_loops_of_links_end(folder):
    (folder / "a" / "b" / "back").symlink_to(folder)
    assert FolderTimes().state(str(folder))
