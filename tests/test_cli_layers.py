"""Flags of retrieval and files of layers: what they say reaches the drawing."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.layers import KeyChoice, Layer
from arrag_engine.retrieval import Steering
from arrag_engine.session import draw, plan
from arrag_engine.settings import AS_BUILT

LINE = "generate --model {model} --dtype fp32 --prompt red --out {tmp}/a.png --json {tmp}/a.json"
INDEX = " --index {files}/index.safetensors --only= --weight 0.6"
KEYS = KeyChoice(AS_BUILT, AS_BUILT, AS_BUILT)


@pytest.fixture
def region(tmp_path):
    grey = np.zeros((12, 12), np.uint8)
    grey[:, 6:] = 255
    Image.fromarray(grey).save(tmp_path / "region.png")
    return (grey / 255).astype(np.float32)


def tokens_of(tmp_path):
    return json.loads((tmp_path / "a.json").read_text())["images"][0]["tokens"]


def drawn(model_file, *layers):
    base = load_checkpoint(model_file, torch.float32)
    return draw(base, plan(base, "red", layers=layers), [0]).tokens.flatten().tolist()


@pytest.mark.parametrize(
    ("flags", "steering"),
    [
        ("--region {tmp}/region.png", {"region": True}),
        ("--start 0.5", {"start": 0.5}),
        ("--end 0.5 --curve linear", {"end": 0.5, "curve": "linear"}),
        ("--curve rows --rows 1,0", {"curve": "rows", "rows": [1, 0]}),
        ("--max-distance 4.5", {"max_distance": 4.5}),
        ("--copy-limit 1", {"copy_limit": 1}),
    ],
)
def test_steering_flags_reach_the_drawing(
    run, tmp_path, model_file, index, region, flags, steering
):
    if steering.get("region"):
        steering = {"region": region}
    assert run(f"{LINE}{INDEX} {flags}")[0] == 0
    steered = Layer(index, "", KEYS, 0.6, steering=Steering(**steering))
    assert tokens_of(tmp_path) == drawn(model_file, steered)
    assert tokens_of(tmp_path) != drawn(model_file, Layer(index, "", KEYS, 0.6))


def test_include_and_exclude_choose_pictures(run, tmp_path, model_file, index):
    run(f"{LINE}{INDEX} --include =0.png --include 3. --exclude 0")
    own = Layer(index, "3.png", KEYS, 0.6)
    assert tokens_of(tmp_path) == drawn(model_file, own)


def test_a_file_brings_more_layers(run, tmp_path, model_file, index, files, region):
    name = str(files / "index.safetensors")
    more = [
        {"index": name, "only": "", "weight": 0.3, "region": "region.png", "temperature": 0.5},
        {"index": name, "only": "1.png", "weight": 0.1, "curve": "rows", "rows": [0, 1]},
    ]
    (tmp_path / "more.json").write_text(json.dumps(more))
    assert run(LINE + INDEX + " --layers {tmp}/more.json")[0] == 0
    wanted = drawn(
        model_file,
        Layer(index, "", KEYS, 0.6),
        Layer(index, "", KEYS, 0.3, 0.5, steering=Steering(region)),
        Layer(index, "1.png", KEYS, 0.1, steering=Steering(curve="rows", rows=[0, 1])),
    )
    assert tokens_of(tmp_path) == wanted
    report = json.loads((tmp_path / "a.json").read_text())
    assert len(report["settings"]["layers"]) == 3
    facts = [p for p in report["images"][0]["positions"] if len(p.get("layers", ())) == 3]
    assert facts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "more.json is not readable JSON"),
        ("[" * 100_000, "more.json is not readable JSON"),
        ("{}", "must hold a list of 1 to 16 layers"),
        ("[]", "must hold a list of 1 to 16 layers"),
        ('[{"only": "x"}]', "layer 1 of .*more.json names no index"),
        ('[{"index": "pocket", "color": 1}]', "layer 1 of .* has 'color'; known are index"),
        ('[{"index": "pocket", "region": 1}]', "has the region 1; write the path"),
        ('[{"index": "nowhere"}]', "nowhere is neither a file or folder nor a shipped name"),
        ('[{"index": "pocket", "region": "no.png"}]', "no.png"),
        ('[{"index": "pocket", "weight": "much"}]', "retrieval weight is 'much'"),
        ('[{"index": "pocket", "rows": "1 a", "curve": "rows"}]', "rows holds 'a'"),
        ('[{"index": "pocket", "start": null}]', "start is None"),
        ('[{"index": "pocket", "neighborhood": 3}]', "neighborhood is 3"),
    ],
)
def test_a_file_of_layers_that_cannot_be_used_is_refused(run, tmp_path, text, message):
    (tmp_path / "more.json").write_text(text)
    code, _, err = run(LINE + " --layers {tmp}/more.json")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert re.search(message, err)
    assert not (tmp_path / "a.png").exists()


def test_steering_without_an_index_is_refused(run):
    code, _, err = run(LINE + " --copy-limit 3")
    assert code == 2
    assert "--copy-limit steers an index; pass one with --index" in err


def test_settings_name_the_layers_that_were_used(run, tmp_path, files):
    """Also where the first one drops out: the prompt has none of its subjects."""
    name = str(files / "index.safetensors")
    more = [{"index": name, "only": "", "weight": 0.3, "end": 0.5}]
    (tmp_path / "more.json").write_text(json.dumps(more))
    assert run(LINE + " --index {files}/index.safetensors --layers {tmp}/more.json")[0] == 0
    settings = json.loads((tmp_path / "a.json").read_text())["settings"]
    assert settings["layers"][-1].items() >= {**more[0], "retrieval_weight": 0.3}.items()
    assert run(f"{LINE}{INDEX} --copy-limit 3")[0] == 0
    settings = json.loads((tmp_path / "a.json").read_text())["settings"]
    assert (settings["index"], settings["copy_limit"], settings["only"]) == (name, 3, "")
