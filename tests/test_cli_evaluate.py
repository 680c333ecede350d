"""`eval` and `calibrate` from the command line."""

import json

import pytest
import torch

from arrag_engine import calibrate, shipped
from arrag_engine.bench.settings import EVERY_KIND
from arrag_engine.calibrate import observe, own_pictures
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.index import load_index
from arrag_engine.retrieval import make_retriever
from arrag_engine.settings import HARM, RetrievalOptions

SHIPPED = pytest.mark.skipif(
    not (shipped.BENCH / "tokens.safetensors").exists(), reason="no benchmark is shipped"
)


@SHIPPED
def test_a_short_run_scores_every_kind(run, tmp_path):
    line = "eval pocket --methods plain,daid,control --seeds 1 --limit 1 --out {tmp}/out"
    code, out, err = run(line)
    assert code == 0, err
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert {(s["kind"], s["method"]) for s in scores} == {
        (kind, method) for kind in EVERY_KIND for method in ("plain", "daid", "control")
    }
    assert all(len(s["right"]) == 1 and 0 <= s["right"][0] <= 1 for s in scores)
    assert all((s["copied"] is None) == (s["method"] == "plain") for s in scores)
    assert (tmp_path / "out" / "table.txt").read_text() == out
    for kind in EVERY_KIND:
        assert (tmp_path / "out" / f"{kind}-daid.png").exists()
    again = run("eval pocket --methods plain --kinds single_object --seeds 1 --limit 1")[1]
    assert [line for line in out.splitlines() if line.startswith("single_object  plain")] == [
        line for line in again.splitlines() if line.startswith("single_object  plain")
    ]


@SHIPPED
def test_the_first_seed_says_which_pictures_are_drawn(run, tmp_path):
    line = "eval pocket --methods plain --kinds counting --limit 2 --out {tmp}/"

    def right(folder, flags):
        assert run(f"{line}{folder} {flags}")[0] == 0
        return json.loads((tmp_path / folder / "scores.json").read_text())[0]["objects"]

    both = right("both", "--seeds 3")
    assert right("last", "--seeds 2 --first-seed 1") == both[1:]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--methods magic", "choose some of plain, daid"),
        ("--kinds nothing", "choose some of single_object"),
        ("--kinds ,", "choose some of"),
        ("--seeds 0", "--seeds is 0; choose 1 to 10000"),
        ("--first-seed -1", "--first-seed is -1; choose 0 to"),
        ("--limit 0", "--limit is 0; choose 1 to"),
        ("--adapter pocket", "--adapter needs the method faid; add faid to --methods, or omit"),
        ("--scorer {tmp}/none.safetensors", "there is no file"),
        ("--index {files}/index.safetensors", "another grid|6x6 grid"),
    ],
)
def test_wrong_flags_are_one_sentence(run, flags, message):
    import re

    code, out, err = run(f"eval pocket {flags}")
    assert code == 2
    assert not out
    assert re.search(message, err), err
    assert "Traceback" not in err


OWN = 12


@pytest.fixture
def captioned(tmp_path, files, monkeypatch):
    """Pictures that the index lacks; a dozen that the model draws are enough."""
    monkeypatch.setattr(calibrate, "OWN_PICTURES", OWN)
    import numpy as np
    from PIL import Image

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
