"""Fixtures and options shared by all tests of the engine."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch; for what tests start, too:
# threads that wait for each other at every tiny product take more time than the products.

import numpy as np
import pytest
import torch
from PIL import Image

from arrag_engine.cli import main, progress
from arrag_engine.grid import Grid
from arrag_engine.index import save_index
from scripts.comfyui import ROOT
from scripts.launch_comfyui import declare_missing_operators
from tests.folders import long
from tests.tiny import tiny_config, tiny_index, tiny_model, write_adapter, write_tiny

declare_missing_operators()  # transformers imports torchvision
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it


def pytest_addoption(parser):
    parser.addoption(
        "--mutations", type=int, default=200, help="damaged variants of each file to try"
    )


CHECKER = pytest.StashKey[subprocess.Popen]()


def pytest_collection_finish(session):
    """Start the type checker first, which takes half a minute beside the other tests."""
    wanted = any(item.path.name == "test_types.py" for item in session.items)
    if wanted and not session.config.option.collectonly:
        session.config.stash[CHECKER] = subprocess.Popen(
            [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def pytest_unconfigure(config):
    if CHECKER in config.stash:
        config.stash[CHECKER].kill()


@pytest.fixture
def checker(pytestconfig):
    """The type checker, at work since the tests began."""
    return pytestconfig.stash[CHECKER]


@pytest.fixture(scope="session")
def model():
    """A model nobody may change."""
    return tiny_model()


@pytest.fixture(scope="session")
def index(model):
    """An index of random pictures for `model`."""
    return tiny_index(model)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory, model):
    """`model` as our single file."""
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors", model)


@pytest.fixture(scope="session")
def index_file(tmp_path_factory, index):
    """`index` as a file."""
    path = tmp_path_factory.mktemp("index") / "tiny.safetensors"
    save_index(index, path)
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory, model, index, model_file):
    """Everything a command may be given, good and bad."""
    folder = tmp_path_factory.mktemp("files")
    save_index(index, folder / "index.safetensors")
    save_index(tiny_index(tiny_model(9)), folder / "other-vq.safetensors")
    wide = tiny_model(0, replace(tiny_config(), grid=Grid(5, 6)))
    save_index(tiny_index(wide), folder / "other-grid.safetensors")
    data = (folder / "index.safetensors").read_bytes()
    (folder / "cut-index.safetensors").write_bytes(data[:-10])
    later = data.replace(b'"version":"2"', b'"version":"3"')
    assert later != data
    (folder / "later-index.safetensors").write_bytes(later)
    write_adapter(folder / "adapter.safetensors", model_file)
    write_adapter(
        folder / "other-adapter.safetensors",
        write_tiny(folder / "other.safetensors", tiny_model(8)),
    )
    (folder / "cut-model.safetensors").write_bytes(model_file.read_bytes()[:-10])
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (15, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(pictures / f"{i}.png")
    (folder / "no-pictures").mkdir()
    return folder


@pytest.fixture
def run(files, model_file, tmp_path, capsys, monkeypatch):
    """Run a command; returns (exit code, stdout, stderr). Words in braces are paths."""
    monkeypatch.setattr(progress, "QUIET", math.inf)  # no lines of progress on a slow machine
    monkeypatch.setattr(progress, "SILENCE", math.inf)

    def go(line, **more):
        places = {"files": files, "model": model_file, "tmp": tmp_path, **more}
        words = [word.format(**places) for word in line.split()]
        try:
            code = main(words)
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return go


@pytest.fixture(scope="session")
def square():
    """A 24x24 model: the grid that deepseek's layout has without saying so."""
    return tiny_model(2, long(tiny_config(side=24)))


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield
