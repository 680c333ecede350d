"""Paths are checked before the work: what is missing is not unreadable, and nothing is a trace."""

import os
from pathlib import Path

import pytest

from arrag_engine import shipped
from arrag_engine.errors import InputError
from arrag_engine.paths import (
    MAX_NAME,
    check_file,
    check_folder,
    check_output,
    check_readable,
    check_work_folder,
    given_name,
    given_path,
    look_at,
)

READ = [check_file, check_folder, check_readable, look_at]


def refusal(check, *args):
    with pytest.raises(InputError) as refused:
        check(*args)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def denied(monkeypatch):
    """Function: the system denies access to a path, even to root."""

    def deny(path):
        real = os.access
        monkeypatch.setattr(os, "access", lambda p, mode: Path(p) != path and real(p, mode))

    return deny


@pytest.mark.parametrize("given", ["", "  "])
def test_an_empty_value_names_its_option(given):
    assert refusal(given_name, given, "--index") == "--index is empty; pass a value"
    assert refusal(given_path, given, "--out") == "--out is empty; pass a value"


def test_a_path_with_a_zero_byte_is_none():
    assert "which is no path" in refusal(given_path, "a\0b", "--out")


@pytest.mark.parametrize("check", READ)
def test_what_the_system_refuses_is_a_sentence(check, tmp_path):
    assert "cannot read" in refusal(check, tmp_path / ("x" * 300))
    assert len(refusal(check, Path("y" * 100_000))) < 1000
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot read" in refusal(check, tmp_path / "loop")


def test_unreadable_is_not_missing(tmp_path, denied):
    file, folder = tmp_path / "a", tmp_path / "b"
    file.touch()
    folder.mkdir()
    assert (check_file(file), check_folder(folder), check_readable(file)) == (file, folder, file)
    denied(file)
    for check in (check_file, check_readable):
        assert "permission denied" in refusal(check, file)
    denied(folder)
    for check in (check_folder, check_readable):
        assert "permission denied" in refusal(check, folder)
    assert "there is no file" in refusal(check_file, tmp_path / "none")
    assert "there is no folder" in refusal(check_folder, tmp_path / "none")
    assert "there is no file or folder" in refusal(check_readable, file / "below a file")


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path):
    (tmp_path / "a").touch()
    assert refusal(check_file, tmp_path).endswith("is a folder; choose a file")
    assert refusal(check_folder, tmp_path / "a").endswith("is a file; choose a folder")


def test_shipped_names_and_paths_go_through_the_same_checks(tmp_path):
    assert shipped.resolve("pocket", shipped.INDEXES).is_file()
    assert "is empty" in refusal(shipped.resolve, "", shipped.INDEXES)
    assert "is a folder" in refusal(shipped.resolve, str(tmp_path), shipped.INDEXES)
    assert shipped.resolve(str(tmp_path), shipped.MODELS) == tmp_path
    assert "cannot read" in refusal(shipped.resolve, "x" * 300, shipped.ADAPTERS)


def test_an_output_can_be_written_and_opened_again(tmp_path, denied):
    for name, suffix in (("a.png", ".png"), ("a.PNG", ".png"), ("a.safetensors", ".safetensors")):
        assert check_output(tmp_path / name, suffix) == tmp_path / name
    loud = refusal(check_output, tmp_path / "a.SAFETENSORS", ".safetensors")
    assert loud.endswith("must end in .safetensors")
    long = tmp_path / ("ä" * (MAX_NAME // 2) + ".png")
    assert f"has {MAX_NAME + 4} bytes" in refusal(check_output, long, ".png")
    assert "there is no folder" in refusal(check_output, tmp_path / "no" / "a.png", ".png")
    denied(tmp_path)
    assert "cannot be written to" in refusal(check_output, tmp_path / "a.png", ".png")


def test_a_work_folder_can_be_made_or_written_to(tmp_path, denied):
    assert check_work_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    assert "is a file" in refusal(check_work_folder, tmp_path / "file" / "run")
    denied(tmp_path)
    assert "cannot be written to" in refusal(check_work_folder, tmp_path / "a" / "b")
