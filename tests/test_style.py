"""Linter and formatter find nothing to say."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_ruff_is_content(command):
    pytest.importorskip("ruff", reason="ruff is not installed")
    folders = ["arrag_engine", "nodes", "scripts", "tests", "run.py", "__init__.py"]
    result = subprocess.run(
        [sys.executable, "-m", "ruff", *command, *folders], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
