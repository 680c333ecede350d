"""`eval` and `calibrate` from the command line."""

import json

import pytest

from arrag_engine import shipped
from arrag_engine.bench.settings import EVERY_KIND
from arrag_engine.index import load_index

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
        ("--seeds 0", "must be 1 or more"),
        ("--first-seed -1", "choose 0 or more"),
        ("--limit 0", "must be 1 or more"),
        ("--adapter pocket", "--adapter needs the method faid; add faid to --methods, or omit"),
        ("--scorer {tmp}/none.safetensors", "is not a scorer"),
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


@pytest.fixture
def captioned(tmp_path, files):
    """Pictures that the index lacks."""
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
        "--out {tmp}/calibrated.safetensors --neighbours 8"
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
    calibrate = "calibrate --model {model} --index {files}/index.safetensors --neighbours 8 "
    calibrate += (
        "--images {tmp}/captioned --known {tmp}/captioned --harm 0.5 --out {tmp}/k.safetensors"
    )
    code, out, err = run(calibrate)
    assert code == 0, err
    assert "what the model knows: " in out
    code, _, err = run(calibrate.replace("--known {tmp}/captioned", "--known {tmp}/nowhere"))
    assert code == 2
    assert "nowhere" in err


@pytest.mark.parametrize(("flag", "value"), [("--ceiling", 0), ("--harm", -0.1), ("--harm", 2)])
def test_calibrate_refuses_shares_out_of_range_before_it_starts(run, flag, value):
    calibrate = (
        "calibrate --model {tmp}/none --index {tmp}/none --images {tmp} --out {tmp}/o.safetensors"
    )
    code, _, err = run(f"{calibrate} {flag} {value}")
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
