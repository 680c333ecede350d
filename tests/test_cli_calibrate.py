"""`calibrate`, and what `generate` does with it, from the command line."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from arrag_engine import calibrate
from arrag_engine.calibrate import observe, own_pictures
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.index import load_index
from arrag_engine.retrieval import make_retriever
from arrag_engine.settings import HARM, RetrievalOptions

OWN = 12


@pytest.fixture
def captioned(tmp_path, files, monkeypatch):
    """Pictures that the index lacks; a dozen that the model draws are enough."""
    monkeypatch.setattr(calibrate, "OWN_PICTURES", OWN)
    folder = tmp_path / "captioned"
    folder.mkdir()
    for i in range(14):
        noise = np.random.default_rng(50 + i).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a red car" if i % 2 else "")
    return folder


def test_calibrate_writes_an_index_that_auto_draws_with(run, captioned, tmp_path):
    code, out, err = run(
        "calibrate --model {model} --index {files}/index.safetensors --images {tmp}/captioned "
        "--out {tmp}/calibrated.safetensors --neighbours 8 --known {tmp}/captioned --harm 1"
    )
    assert code == 0, err
    assert "positions: bits per token" in out
    assert re.search(r"with auto, which uses retrieval at \d+% of them$", out.splitlines()[0])
    index = load_index(tmp_path / "calibrated.safetensors")
    assert index.calibration.neighbours == 8
    draw = "generate --model {model} --prompt red --index {tmp}/calibrated.safetensors "
    draw += "--weight auto --out {tmp}/a.png --json {tmp}/a.json "
    code, _, err = run(draw + "--neighbours 8")
    assert code == 0, err
    positions = json.loads((tmp_path / "a.json").read_text())["images"][0]["positions"]
    assert len({p["weight"] for p in positions}) > 2
    assert run(draw)[0] == 0
    settings = json.loads((tmp_path / "a.json").read_text())["settings"]
    assert settings["retrieval_neighbours"] == 8
    code, _, err = run(draw + "--neighbours 9")
    assert code == 2
    assert "was calibrated for" in err


def test_calibrate_tells_what_becomes_of_what_the_model_knows(run, captioned, tmp_path):
    line = "calibrate --model {model} --index {files}/index.safetensors --neighbours 8 "
    line += "--images {tmp}/captioned --known {tmp}/captioned --harm 0.5 --out {tmp}/k.safetensors"
    code, out, err = run(line)
    assert code == 0, err
    assert "what the model knows: " in out
    code, _, err = run(line.replace("--known {tmp}/captioned", "--known {tmp}/nowhere"))
    assert code == 2
    assert "nowhere" in err


@pytest.mark.parametrize("flags", ["", "--harm 0", "--harm 0.01 --ceiling 0.5 --limit 12"])
def test_without_known_pictures_the_model_draws_some_and_keeps_them(
    run, captioned, tmp_path, model, model_file, flags
):
    """However loud the index may get, of these no more tokens are spoiled than --harm says."""
    line = "calibrate --model {model} --dtype fp32 --index {files}/index.safetensors "
    line += "--neighbours 8 --images {tmp}/captioned --out {tmp}/k.safetensors "
    code, out, err = run(line + flags)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"tiny draws {OWN} pictures by itself; they count as known"
    assert "what the model knows: " in out
    index = load_index(tmp_path / "k.safetensors")
    checkpoint = load_checkpoint(model_file, torch.float32)
    codebook = model.vq.codebook(torch.device("cpu"))
    retriever = make_retriever(index, model.config.grid, codebook)
    encoder, options = checkpoint.prompt_encoder, RetrievalOptions(neighbours=8)
    own = own_pictures(checkpoint.model, encoder, checkpoint.sampling, OWN)
    known = observe(checkpoint.model, encoder, retriever, own, options)
    lost = index.calibration.of(known.evidence) * (known.p_model - known.p_retrieval).clip(0)
    harm = float(flags.split()[1]) if flags else HARM
    assert lost.mean() <= harm
    assert index.calibration.floor > 0


@pytest.mark.parametrize(("flag", "value"), [("--ceiling", 0), ("--harm", -0.1), ("--harm", 2)])
def test_calibrate_refuses_shares_out_of_range_before_it_starts(run, flag, value):
    line = (
        "calibrate --model {tmp}/none --index {tmp}/none --images {tmp} --out {tmp}/o.safetensors"
    )
    code, _, err = run(f"{line} {flag} {value}")
    assert code == 2
    assert f"{flag} is {float(value)}" in err


def test_auto_needs_calibration(run):
    code, _, err = run(
        "generate --model {model} --prompt red --index {files}/index.safetensors --weight auto "
        "--out {tmp}/a.png"
    )
    assert code == 2
    assert "not calibrated" in err


def test_pictures_of_the_index_are_no_proof(run, files, tmp_path):
    build = "build --model {model} --images {files}/pictures --out {tmp}/own.safetensors"
    assert run(build)[0] == 0
    code, _, err = run(
        "calibrate --model {model} --index {tmp}/own.safetensors --images {files}/pictures "
        "--out {tmp}/c.safetensors"
    )
    assert code == 2
    assert "no readable picture that the index lacks" in err
