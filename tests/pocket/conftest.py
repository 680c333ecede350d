"""The pocket model's scripts, importable, with made sprites."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "pocket"))

from data import Composer
from sprites import Sprites

from scripts.comfyui import ROOT
from tests.pocket.made import NAMES, made_sprites


@pytest.fixture(scope="session")
def sprites() -> dict[str, Sprites]:
    return {style: made_sprites(style) for style in ("fluent", "google")}


@pytest.fixture
def composer(sprites) -> Composer:
    return Composer(sprites["fluent"], NAMES, "train")


@pytest.fixture
def run_script(monkeypatch):
    """Function: run a script and those that it starts, with one worker each, as `python` would.

    They share the process of the tests: each would take seconds to import PyTorch.
    """

    def run(command, check):
        assert check
        python, script, *flags = map(str, command)
        assert python == sys.executable
        with monkeypatch.context() as patch, torch.inference_mode(False):
            patch.setattr(sys, "argv", [script, *flags])
            runpy.run_path(script, run_name="__main__")

    monkeypatch.setattr(subprocess, "run", run)
    folder = ROOT / "scripts" / "pocket"
    return lambda script, *flags: run([sys.executable, folder / script, *flags], check=True)
