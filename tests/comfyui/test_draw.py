"""The README's first command, less the installing."""

import io
import os
import subprocess
import sys

import pytest
from PIL import Image

from scripts.comfyui import ROOT
from scripts.recognise import things_on


def run_draw(server, *arguments):
    """`run.py draw` after its set-up, with the ComfyUI of the other tests."""
    environment = {**os.environ, "COMFYUI_DIR": str(server.comfyui), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "scripts.draw", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "drawn", "thing"),
    [
        ([], "Drawing 'a flamingo', seed 7", "flamingo"),
        (["--prompt", "a red car", "--seed", 3], "Drawing 'a red car', seed 3", "car"),
        (["--prompt", "a guitar"], "Drawing 'a guitar', seed 7", "guitar"),
        (["--prompt", "a thing", "--only", "owl"], "Drawing 'a thing', seed 7", "owl"),
    ],
    ids=["the workflow's own", "the model alone", "what only the index has", "chosen pictures"],
)
def test_draw_saves_a_picture_and_says_where(server, tmp_path, arguments, drawn, thing):
    target = tmp_path / "picture.png"
    done = run_draw(server, *arguments, "--out", target)
    assert done.returncode == 0, done.stderr
    assert drawn in done.stdout
    assert f"Saved {target}" in done.stdout
    assert Image.open(io.BytesIO(target.read_bytes())).format == "PNG"
    assert thing in [found.name for found in things_on(target)]


def test_draw_fails_with_one_sentence(server, tmp_path):
    target = tmp_path / "nothing.png"
    done = run_draw(server, "--prompt", " ", "--out", target)
    assert done.returncode == 1
    assert done.stderr.startswith("run.py: ")
    assert len(done.stderr.splitlines()) == 1
    assert not target.exists()
