"""The wheel: its contents, its message without PyTorch, and that it draws outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest
from PIL import Image

from scripts.comfyui import ROOT

pytest.importorskip("setuptools", reason="setuptools is not installed")
SOURCES = ("arrag_engine", "licenses", "LICENSE", "NOTICE", "README.md", "pyproject.toml")
SOURCES += ("requirements.txt", "nodes", "scripts", "tests", "__init__.py", "run.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the sources: building leaves files beside them."""
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy / name)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out]
    pip("wheel", *options, copy)
    [built] = out.glob("arrag-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(tmp_path_factory, wheel):
    """A new environment with the wheel and nothing else; returns its folder of programs."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    python = programs / ("python.exe" if os.name == "nt" else "python")
    pip("--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    return programs


def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", *map(str, arguments)], check=True)


def call(programs, folder, *arguments):
    """Run the installed command in a folder outside the checkout."""
    hidden = ("PYTHONPATH", "PYTHONHOME")
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [programs / "arrag", *arguments]
    return subprocess.run(
        [*map(str, command)], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )


def test_it_holds_the_engine_and_its_data_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"arrag_engine", f"{wheel.name.split('-py3')[0]}.dist-info"}
    inside = {path.relative_to(ROOT).as_posix() for path in (ROOT / "arrag_engine").rglob("*.*")}
    wanted = {name for name in inside if "__pycache__" not in name}
    assert {name for name in names if name.startswith("arrag_engine/")} == wanted


def test_without_torch_it_says_what_to_install_and_then_draws(environment, tmp_path):
    draw = ("generate", "--prompt", "a red car", "--index", "pocket", "--out", "car.png")
    refused = call(environment, tmp_path, *draw)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: arrag needs PyTorch")
    assert len(refused.stderr.splitlines()) == 1
    assert "pip install 'arrag[torch]'" in refused.stderr

    [packages] = environment.parent.rglob("site-packages")
    suite = sysconfig.get_path("purelib")
    (packages / "suite.pth").write_text(suite + "\n", encoding="utf-8")
    done = call(environment, tmp_path, *draw)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "car.png").size == (96, 96)

    clone = call(environment, tmp_path, "eval", "pocket", "--seeds", "1")
    assert clone.returncode == 2
    assert clone.stderr == (
        "error: the suite pocket lies in scripts/pocket of the repository, which is not installed; "
        "run `python -m arrag_engine eval pocket` in a clone of the repository\n"
    )
