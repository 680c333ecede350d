"""The whole chain in miniature: from archives of pictures to all that ships."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from arrag_engine import shipped
from arrag_engine.adapter import load_adapter
from arrag_engine.bench.prompts import read_prompts
from arrag_engine.bench.scenes import read_scenes
from arrag_engine.bench.scorer import load_scorer
from arrag_engine.checkpoint import load_checkpoint
from arrag_engine.index import load_index
from tests.pocket.made import write_archives

MAKE = Path(__file__).parents[2] / "scripts" / "pocket" / "make.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(OUT, WORK, a function that runs the chain) after it ran once."""
    folder = tmp_path_factory.mktemp("make")
    write_archives(folder / "npm")
    flags = ["--work", folder / "work", "--out", folder / "out", "--archives", folder / "npm"]
    flags += ["--scale", 0.0004, "--workers", 1]
    flags += ["--start", shipped.resolve("pocket", shipped.MODELS)]

    def make():
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, MAKE, *map(str, flags)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    make()
    return folder / "out", folder / "work", make


def test_what_is_made_fits_together(made):
    out, work, _ = made
    checkpoint = load_checkpoint(out / "models" / "pocket.safetensors", torch.float32)
    index = load_index(out / "indexes" / "pocket.safetensors")
    index.check_fits(checkpoint.model.config.grid, checkpoint.model.vq.codebook("cpu"))
    assert index.calibration is not None
    assert {name.split("/")[0] for name in (s.name for s in index.sources)} == {
        "known",
        "unseen",
        "style",
    }
    load_adapter(out / "adapters" / "pocket.safetensors", checkpoint, torch.float32)
    load_scorer(out / "bench" / "scorer.safetensors")
    assert {p.kind for p in read_prompts(out / "bench" / "prompts.jsonl")} > {"concept", "style"}
    assert {scene.split for scene in read_scenes(out / "bench")} == {"seen", "unseen", "style"}
    report = json.loads((work / "adapter-report.json").read_text())
    assert all(np.isfinite(bits) for split in report["bits"].values() for bits in split.values())
    assert (work / "samples.png").is_file()


def test_made_again_everything_stays(made):
    out, _, make = made
    kept = ("models", "indexes", "adapters")
    before = {name: (out / name / "pocket.safetensors").read_bytes() for name in kept}
    make()
    for name in kept:
        assert (out / name / "pocket.safetensors").read_bytes() == before[name]
