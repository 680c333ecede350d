"""The whole chain in miniature: from archives of pictures to all that ships."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from arrag_engine import shipped
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.checkpoints.adapter import load_adapter
from arrag_engine.index import load_index
from scripts.pocket.bench.prompts import read_prompts
from scripts.pocket.bench.scenes import read_scenes
from scripts.pocket.bench.scorer import load_scorer
from tests.pocket.made import write_archives

MAKE = Path(__file__).parents[2] / "scripts" / "pocket" / "make.py"


def test_what_is_made_fits_together(tmp_path):
    out, work, archives = tmp_path / "out", tmp_path / "work", tmp_path / "npm"
    write_archives(archives)
    flags = ["--work", work, "--out", out, "--archives", archives, "--workers", 1]
    flags += ["--scale", 0.0004, "--start", shipped.resolve("pocket", shipped.MODELS)]
    done = subprocess.run(
        [sys.executable, MAKE, *map(str, flags)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
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
