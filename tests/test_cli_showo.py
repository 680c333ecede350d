"""Commands with a Show-o model."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from arrag_engine.checkpoints.adapter import open_adapter
from arrag_engine.faid import AdapterConfig
from arrag_engine.index import save_index
from tests.tiny import write_adapter, write_tiny
from tests.tiny_showo import showo_folder, sign_index, tiny_showo
from tests.train.test_data import write_pictures


@pytest.fixture(scope="module")
def showo(tmp_path_factory):
    return showo_folder(tmp_path_factory.mktemp("models") / "show-o", tiny_showo())


def generated(run, showo, tmp_path, more=""):
    line = "generate --model {showo} --dtype fp32 --prompt red --out {tmp}/a.png"
    code, _, err = run(f"{line} --json {{tmp}}/a.json {more}", showo=showo)
    assert code == 0, err
    return json.loads((tmp_path / "a.json").read_text()), err


def tokens_of(report):
    return report["images"][0]["tokens"]


def test_a_picture_is_drawn_and_tells_its_schedule(run, showo, tmp_path):
    report, err = generated(run, showo, tmp_path, "--steps 5")
    assert report["passes"] == 5
    settings = report["settings"]
    assert (settings["schedule_steps"], settings["schedule_curve"]) == (5, "cosine")
    assert settings["cfg"] == 2.75
    assert "Schedule: 5 steps, temperature 1, cosine." in err
    assert Image.open(tmp_path / "a.png").size == (12, 12)
    assert generated(run, showo, tmp_path)[0]["passes"] == 18


@pytest.mark.parametrize(
    ("flag", "name", "value"),
    [
        ("--schedule linear", "curve", "linear"),
        ("--schedule pow --schedule-power 0.5", "power", 0.5),
        ("--schedule-temperature 0", "temperature", 0.0),
    ],
)
def test_each_flag_of_the_schedule_changes_the_picture(run, showo, tmp_path, flag, name, value):
    plain = generated(run, showo, tmp_path, "--steps 5")[0]
    changed = generated(run, showo, tmp_path, f"--steps 5 {flag}")[0]
    assert changed["settings"][f"schedule_{name}"] == value
    assert tokens_of(changed) != tokens_of(plain)


def test_a_model_in_raster_order_has_no_schedule(run):
    for flag in ("--steps 4", "--schedule linear", "--schedule-temperature 1"):
        code, _, err = run(f"generate --model {{model}} --prompt red --out {{tmp}}/a.png {flag}")
        assert code == 2
        assert "draws in raster order, one token after the other; leave them out" in err


def test_values_out_of_range_are_refused_before_loading(run, tmp_path):
    for flag, name in (("--steps 0", "steps"), ("--schedule-power 0", "schedule-power")):
        code, _, err = run(f"generate --model nowhere --prompt red --out {{tmp}}/a.png {flag}")
        assert code == 2
        assert name in err


def test_an_index_joins_with_all_neighbours(run, showo, tmp_path):
    save_index(sign_index(structure="flat"), tmp_path / "index.safetensors")
    plain = generated(run, showo, tmp_path, "--steps 5")[0]
    line = "--steps 5 --index {tmp}/index.safetensors --only= --weight 0.9"
    report, _ = generated(run, showo, tmp_path, line)
    assert report["settings"]["keys_neighborhood"] == "ring-8"
    assert tokens_of(report) != tokens_of(plain)


@pytest.fixture
def noise(tmp_path):
    """A picture of the model's size."""
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)).save(path)
    return path


def test_a_picture_is_continued_beyond_a_side(run, showo, tmp_path, noise):
    kept = generated(run, showo, tmp_path, f"--edit {noise} --redraw 0")[0]
    given = np.array(tokens_of(kept)).reshape(6, 6)
    line = f"--steps 3 --edit {noise} --outpaint left --times 2"
    report, err = generated(run, showo, tmp_path, line)
    assert np.array_equal(np.array(tokens_of(report)).reshape(6, 12)[:, 6:], given)
    assert Image.open(tmp_path / "a.png").size == (24, 12)
    assert "Outpainting: 2 x 3 columns, side 'left'; 6x12 tokens." in err
    told = {"edit": str(noise), "outpaint": "left", "times": 2}
    assert report["settings"].items() >= told.items()
    assert report["passes"] == 6


def test_a_model_in_raster_order_continues_no_picture(run, noise):
    line = f"generate --model {{model}} --prompt red --out {{tmp}}/a.png --edit {noise}"
    code, _, err = run(f"{line} --outpaint left")
    assert code == 2
    assert "draws in raster order, and outpainting needs one that draws in any order" in err


def test_a_prompt_that_is_cut_is_said(run, showo, tmp_path):
    words = "\u00a0".join(["red"] * 12)  # one word of the command line
    line = f"generate --model {{showo}} --prompt {words} --out {{tmp}}/a.png --steps 2"
    code, _, err = run(line.replace("\u00a0", ","), showo=showo)
    assert code == 0
    assert "the model reads 7: it is cut off after" in err


def test_convert_inspect_and_build_take_it(run, showo, tmp_path, files):
    code, out, _ = run("inspect {showo}", showo=showo)
    assert code == 0
    assert "6x6" in out
    assert "12x12 pixels" in out
    assert run("convert {showo} --out {tmp}/one.safetensors", showo=showo)[0] == 0
    line = "build --images {files}/pictures --model {tmp}/one.safetensors --out {tmp}/i.safetensors"
    keys = "--neighborhood ring-8 --borders zero --key-space codebook --structure bits"
    code, _, err = run(f"{line} {keys}", files=files)
    assert code == 0, err
    code, out, _ = run("inspect {tmp}/i.safetensors")
    assert "bits" in out
    folder = tmp_path / "no tokenizer"
    shutil.copytree(showo, folder)
    (folder / "tokenizer.json").unlink()
    line = "generate --model {folder} --prompt red --out {tmp}/a.png"
    code, _, err = run(line, folder=folder)
    assert code == 2
    assert "put the tokenizer.json of microsoft/phi-1_5 into" in err


def kinds_of(report):
    return report["settings"]["retrieval_border_keys"], report["settings"]["retrieval_distances"]


@pytest.mark.parametrize("flag", ["border-keys in", "distances sum", "end 0.4", "confidence model"])
def test_each_flag_of_retrieval_changes_the_picture(run, showo, tmp_path, flag):
    save_index(sign_index(structure="flat"), tmp_path / "index.safetensors")
    index = str(tmp_path / "index.safetensors")
    line = "--steps 5 --weight 0.9 --retrieval-temperature 0.5 --neighborhood ring-8 --borders zero"
    line += " --index {tmp}/index.safetensors --only="
    plain, err = generated(run, showo, tmp_path, line)
    assert kinds_of(plain) == ("out", "mean")
    assert "Border keys out, distances: mean." in err
    changed, _ = generated(run, showo, tmp_path, f"{line} --{flag}")
    assert tokens_of(changed) != tokens_of(plain)
    name, value = flag.split()
    if name == "confidence":
        assert changed["settings"]["schedule_confidence"] == value
        return
    layer = {"index": index, "only": "", "weight": 0.9, "temperature": 0.5}
    layer |= {"neighborhood": "ring-8", "borders": "zero"}
    layer[name.replace("-", "_")] = float(value) if name == "end" else value
    (tmp_path / "layers.json").write_text(json.dumps([layer]))
    again, _ = generated(run, showo, tmp_path, "--steps 5 --layers {tmp}/layers.json")
    assert tokens_of(again) == tokens_of(changed)


def test_growing_changes_the_picture(run, showo, tmp_path):
    line = "--steps 12 --schedule-temperature 4"
    plain, err = generated(run, showo, tmp_path, line)
    growing, told = generated(run, showo, tmp_path, f"{line} --grow")
    assert tokens_of(growing) != tokens_of(plain)
    assert (", growing." in err, ", growing." in told) == (False, True)
    assert tokens_of(generated(run, showo, tmp_path, f"{line} --no-grow")[0]) == tokens_of(plain)


@pytest.mark.parametrize("flag", ["border-keys out", "distances mean"])
def test_raster_models_have_no_such_settings(run, flag):
    line = "generate --model {model} --prompt red --out {tmp}/a.png --only="
    code, _, err = run(f"{line} --index {{files}}/index.safetensors --{flag}")
    assert code == 2
    assert "draws in raster order and knows all neighbours of a patch; leave them out" in err


TRAIN = (
    "train faid --model {showo} --images {tmp}/pictures --index {tmp}/i.safetensors "
    "--work {tmp}/run --out {tmp}/adapter.safetensors --steps 2 --every 1 --batch 2 "
    "--accumulation 1 --rank 2 --alpha 4 --candidates 3 --blender-every 1 --held-out 0.25 "
    "--dtype fp32 --lr 1e-2"
)


def test_an_adapter_is_trained_measured_and_drawn_with(run, showo, tmp_path):
    write_pictures(tmp_path / "pictures", 8, "two apples")
    save_index(sign_index(), tmp_path / "i.safetensors")
    keep = "--rehearse 0.5 --rehearse-pictures 4"
    code, out, err = run(f"{TRAIN} {keep}", showo=showo)
    assert code == 0, err
    assert "own bits" in out
    info = open_adapter(tmp_path / "adapter.safetensors").info
    assert info.config == AdapterConfig((0, 1), (1, 2), 2, 4.0, 0.05, True, 3, "masked")
    assert run(f"{TRAIN} {keep}", showo=showo)[0] == 0, "a finished run is not trained again"
    use = "--adapter {tmp}/adapter.safetensors --index {tmp}/i.safetensors"
    code, out, err = run(
        f"train loss --model {{showo}} --images {{tmp}}/pictures {use} --dtype fp32", showo=showo
    )
    assert code == 0, err
    assert "bits a token over 8 pictures" in out
    plain = generated(run, showo, tmp_path, "--steps 5")[0]
    adapted = generated(run, showo, tmp_path, f"--steps 5 --weight 0 {use}")[0]
    assert adapted["settings"]["decoding"] == "faid"
    assert tokens_of(adapted) != tokens_of(plain)
    silent = generated(run, showo, tmp_path, f"--steps 5 --weight 0 --strength 0 {use}")[0]
    assert tokens_of(silent) == tokens_of(plain)


def test_what_does_not_fit_show_o_is_refused_in_training(run, showo, tmp_path):
    write_pictures(tmp_path / "pictures", 4, "two apples")
    save_index(sign_index(), tmp_path / "i.safetensors")
    for flag, message in (
        ("--merged {tmp}/m.safetensors", "show-o is a Show-o model; omit --merged"),
        ("--semantics stepzero", "work only where retrieval runs; choose step"),
    ):
        code, _, err = run(f"{TRAIN} {flag}", showo=showo)
        assert code == 2
        assert message in err
    assert not (tmp_path / "run").exists()


def test_adapters_of_the_other_family_are_refused(run, showo, tmp_path):
    janus = write_tiny(tmp_path / "janus.safetensors")
    write_adapter(tmp_path / "of-janus.safetensors", janus)
    write_adapter(
        tmp_path / "of-show-o.safetensors", showo, AdapterConfig((0,), (1,), order="masked")
    )
    line = "generate --model {} --dtype fp32 --prompt red --out {{tmp}}/a.png --adapter {{tmp}}/{}"
    code, _, err = run(line.format(showo, "of-janus.safetensors"))
    assert code == 2
    assert (
        "was trained on 'janus', which draws in raster order, the model 'show-o' draws in any"
        in err
    )
    code, _, err = run(line.format(janus, "of-show-o.safetensors"))
    assert code == 2
    assert "was trained on 'show-o', which draws in any order, the model 'janus' draws in" in err
