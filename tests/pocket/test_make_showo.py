"""The chain of pocket-o in miniature: from archives of pictures to the model and its index."""

import json

import numpy as np
import torch

from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.index import load_index
from tests.pocket.made import write_archives


def test_what_is_made_fits_together(tmp_path, run_script):
    out, work, archives = tmp_path / "out", tmp_path / "work", tmp_path / "npm"
    write_archives(archives)
    flags = ["--work", work, "--out", out, "--archives", archives, "--scale", 0.0004]
    flags += ["--workers", 1, "--drawers", 1]
    run_script("make_showo.py", *flags)
    checkpoint = load_checkpoint(out / "models" / "pocket-o.safetensors", torch.float32)
    assert not checkpoint.model.order.raster
    index = load_index(out / "indexes" / "pocket-o.safetensors")
    index.check_fits(checkpoint.model.config.grid, checkpoint.model.vq.codebook("cpu"))
    assert index.searcher.kind == "bits"
    assert {source.name.split("/")[0] for source in index.sources} == {"known", "unseen", "style"}
    for name in ("showo-vq", "showo-decoder", "showo-refined"):
        [*_, last] = map(json.loads, (work / f"{name}.jsonl").read_text().splitlines())
        assert all(np.isfinite(v) for key, v in last.items() if key != "time"), name
    assert (work / "samples.png").is_file()
