"""The type checker finds no error, with the settings of pyproject.toml."""

import subprocess
import sys

import pytest

from scripts.comfyui import ROOT


def test_types_are_right():
    pytest.importorskip("basedpyright", reason="basedpyright is not installed")
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
