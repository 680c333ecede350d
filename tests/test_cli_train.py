"""`train`: from folders to an adapter file, on one process or two."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.checkpoints.adapter import open_adapter
from arrag_engine.faid import AdapterConfig
from arrag_engine.train import RunFolder
from arrag_engine.train.rehearsal import MEASURED_OWN
from tests.tiny import write_adapter
from tests.train.test_data import write_pictures

SMALL = "--steps 2 --every 1 --batch 2 --accumulation 1 --rank 2 --alpha 4 --candidates 3"
SMALL += " --blender-every 1 --held-out 0.25 --dtype fp32"
KEEP = "--rehearse 0.5 --rehearse-pictures 4"
FAID = (
    "train faid --model {model} --images {tmp}/pictures --work {tmp}/run --out {tmp}/a.safetensors"
)
INDEX = "--index {files}/index.safetensors"


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "pictures", 8)


@pytest.fixture
def train(run, pictures):
    """Without rehearsal: the captions name all that the tiny model could be asked to draw."""
    return lambda more, line=f"{FAID} {SMALL} {INDEX} --rehearse 0": run(f"{line} {more}")


@pytest.fixture
def rehearse(run, tmp_path):
    """Training on apples, with cars to be kept."""
    write_pictures(tmp_path / "pictures", 8, "two apples")
    return lambda more: run(f"{FAID} {SMALL} {INDEX} {KEEP} {more}")


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_an_adapter_is_trained_written_and_drawn_with(train, run, tmp_path):
    code, out, err = train("--merged {tmp}/m.safetensors")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first.startswith(f"{tmp_path / 'a.safetensors'}: 2 steps, base held out bits ")
    assert second == str(tmp_path / "m.safetensors")
    info = open_adapter(tmp_path / "a.safetensors").info
    assert info.config == AdapterConfig((0, 1), (1, 2), 2, 4.0, 0.05, True, 3)
    assert (info.base, info.index) == ("tiny", "index")
    assert info.training["steps"] == 2
    assert set(info.training["results"]) == {"base_held_out_bits", "held_out_bits"}
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert {file.get_tensor(n).dtype for n in file.keys()} == {torch.float16}  # noqa: SIM118
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {
        "settings.json", "examples.safetensors", "state.safetensors", "log.jsonl", "loss.png",
    }  # fmt: skip
    draw = "generate --prompt red --seed 3 --candidates 3 --dtype fp32 --json {tmp}/o.json"
    draw += " --out {tmp}/o.png"
    tokens = []
    for model in ("{model} --adapter {tmp}/a.safetensors", "{tmp}/m.safetensors --decoding faid"):
        assert run(f"{draw} --model {model} {INDEX}")[0] == 0
        report = json.loads((tmp_path / "o.json").read_text())
        assert report["settings"]["decoding"] == "faid"
        tokens.append(report["images"][0]["tokens"])
    assert tokens[0] == tokens[1]


def test_a_run_goes_on_and_other_settings_are_refused(train, tmp_path):
    assert train("")[0] == 0
    before = load_file(tmp_path / "a.safetensors")
    assert train("")[0] == 0
    assert same(load_file(tmp_path / "a.safetensors"), before)
    code, _, err = train("--lr 0.5")
    assert code == 2
    assert "was begun with lr 0.0002, not 0.5; use the same value, or choose another" in err
    (tmp_path / "pictures" / "0.txt").write_text("another caption")
    code, _, err = train("")
    assert code == 2
    assert "was begun with pictures" in err


def test_what_the_model_draws_itself_is_rehearsed_measured_and_told(rehearse, tmp_path):
    code, out, err = rehearse("")
    assert (code, err) == (0, "")
    names = ("base held out bits", "held out bits", "base own bits", "own bits")
    assert out.startswith(f"{tmp_path / 'a.safetensors'}: 2 steps, the best after ")
    assert all(f", {name} " in out for name in names)
    own = RunFolder(tmp_path / "run").load_own()
    assert len(own) == 4 + MEASURED_OWN
    assert {"a car", "a red car"} >= set(own.captions)
    assert (own.codes >= 0).any(), "nothing was looked up for them"
    results = open_adapter(tmp_path / "a.safetensors").info.training["results"]
    assert set(results) == {
        "base_held_out_bits", "held_out_bits", "base_own_bits", "own_bits", "best_step",
    }  # fmt: skip
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "own_bits" in line] == [0, 1, 2]


def test_forgetting_is_told(rehearse):
    _, _, err = rehearse("--lr 0.5 --warmup 0")
    [sentence] = err.splitlines()
    assert sentence.startswith("warning: at step 1 the pictures that the model draws itself cost ")
    assert sentence.endswith("a higher --rehearse than 0.5, or a lower --lr than 0.5")


def test_captions_that_name_all_that_could_be_rehearsed_are_told(run, pictures):
    code, out, err = run(f"{FAID} {SMALL} {INDEX}")
    assert code == 0
    assert "own bits" not in out
    assert err.startswith("warning: the captions name everything that the model could draw")


def test_a_run_begun_without_rehearsal_goes_on_without_it_only(train, tmp_path):
    """Folders of 0.1 tell nothing of it."""
    assert train("")[0] == 0
    before = load_file(tmp_path / "a.safetensors")
    path = tmp_path / "run" / "settings.json"
    facts = json.loads(path.read_text())
    assert facts.pop("rehearse") == 0
    assert "rehearse_pictures" not in facts
    path.write_text(json.dumps(facts))
    assert train("")[0] == 0
    assert same(load_file(tmp_path / "a.safetensors"), before)
    code, _, err = train("--rehearse 0.5")
    assert code == 2
    assert "was begun with rehearse 0.0, not 0.5; use the same value, or choose another" in err


def test_many_steps_on_few_pictures_are_told_with_a_time(train):
    code, _, err = train("--steps 130 --every 130 --batch 6")
    assert code == 0
    [sentence] = err.splitlines()
    assert sentence.startswith("warning: 130 steps show each of 6 pictures 130 times and take ")
    assert "; --steps " in sentence
    assert "in another --work folder" in sentence


def test_ctrl_c_saves_and_the_same_command_goes_on(run, tmp_path, files, model_file):
    write_pictures(tmp_path / "pictures", 8, "two apples")
    more = f"{SMALL} {INDEX} {KEEP} --steps 150 --every 60 --out-dtype fp32"
    line = f"{FAID} {more}".format(model=model_file, tmp=tmp_path, files=files)
    command = [sys.executable, "-m", "arrag_engine", *line.split()]
    log = tmp_path / "run" / "log.jsonl"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (log.is_file() and log.read_text().count("\n") > 5):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        err = process.communicate()[1]
    assert process.returncode == 1, err
    found = re.search(r"stopped after (\d+) of 150 steps, saved in (.+); the same command", err)
    assert found, err
    assert (int(found[1]), found[2]) == (RunFolder(tmp_path / "run").saved_step(), str(log.parent))
    assert int(found[1]) >= 5
    assert "Traceback" not in err
    assert run(line)[0] == 0
    stopped = load_file(tmp_path / "a.safetensors")
    assert run(line.replace(str(log.parent), str(tmp_path / "whole")))[0] == 0
    assert same(load_file(tmp_path / "a.safetensors"), stopped)


def test_the_control_looks_nothing_up(run, pictures, tmp_path):
    assert run(f"{FAID} {SMALL} --without-retrieval --rehearse 0")[0] == 0
    info = open_adapter(tmp_path / "a.safetensors").info
    assert info.config.blender_layers == ()
    assert info.index == ""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{FAID} {SMALL}", "training needs an --index"),
        (
            f"{FAID} {SMALL} {INDEX} --without-retrieval",
            "--without-retrieval does not use an index",
        ),
        (f"{FAID} {SMALL} {INDEX} --lr 0", "lr is 0.0; choose more than 0"),
        (f"{FAID} {SMALL} {INDEX} --rank 1000000000", "--rank is 1000000000; choose 0 to 4096"),
        (f"{FAID} {SMALL} {INDEX} --batch 1000000000", "--batch is 1000000000; choose 1 to 1024"),
        (f"{FAID} {SMALL} {INDEX} --blender-from 9", "blender from is 9, the decoder has 2 layers"),
        (f"{FAID} {SMALL} {INDEX} --seed -1", "--seed is -1; choose 0 to"),
        (f"{FAID} {SMALL} --index {{files}}/other-vq.safetensors", "built with another VQ"),
        (f"{FAID} {SMALL} --index {{files}}/other-grid.safetensors", "a 5x6 grid, the model draws"),
        (f"{FAID} {SMALL} --index {{files}}/cut-index.safetensors", "cut-index.safetensors"),
        (f"{FAID} {SMALL} {INDEX} --images {{files}}/pictures", "3 of 3 pictures in"),
        (f"{FAID} {SMALL} {INDEX} --images {{files}}/no-pictures", "no readable picture"),
        (f"{FAID} {SMALL} {INDEX} --images {{tmp}}/none", "there is no file or folder"),
        (f"{FAID} {SMALL} {INDEX} --out {{tmp}}/none/a.safetensors", "there is no folder"),
        (f"{FAID} {SMALL} {INDEX} --out {{tmp}}/a.bin", "must end in .safetensors"),
        (f"{FAID} {SMALL} {INDEX} --dtype fp16", "training in fp16 loses small gradients"),
        (f"{FAID} {SMALL} {INDEX} --dtype int8", "with --dtype int8 is not possible; choose bf16"),
        (f"{FAID} {SMALL} {INDEX} --work {{tmp}}/pictures/0.png", "cannot make"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_the_work(run, pictures, line, words):
    code, _, err = run(line)
    assert code == 2
    assert words in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("images", ["{tmp}/typo", "{files}/pictures", "{files}/no-pictures"])
def test_images_that_cannot_be_used_leave_no_work_folder(train, tmp_path, images):
    code, _, err = train(f"--images {images}")
    assert (code, len(err.splitlines())) == (2, 1)
    assert not (tmp_path / "run").exists()
    assert train("")[0] == 0


def test_other_settings_are_refused_before_the_pictures_are_encoded(train, monkeypatch):
    assert train("")[0] == 0
    monkeypatch.setattr("arrag_engine.train.prepare_examples", None)
    code, _, err = train("--lr 0.5")
    assert code == 2
    assert "was begun with lr" in err


def test_loss_tells_what_pictures_cost_with_and_without_an_adapter(
    run, pictures, tmp_path, model_file
):
    write_adapter(tmp_path / "a.safetensors", model_file)
    line = f"train loss --model {{model}} --dtype fp32 --images {{tmp}}/pictures {INDEX}"
    code, alone, _ = run(line)
    assert code == 0
    assert alone.endswith(" bits a token over 8 pictures\n")
    code, adapted, _ = run(f"{line} --adapter {{tmp}}/a.safetensors --json {{tmp}}/l.json")
    assert code == 0
    assert adapted != alone
    report = json.loads((tmp_path / "l.json").read_text())
    assert f"{report['bits']:.4f} " in adapted
    assert [p["caption"] for p in report["pictures"]] == ["a red car"] * 8
    assert sum(p["bits"] for p in report["pictures"]) / 8 == pytest.approx(report["bits"], abs=1e-5)


def test_merging_by_itself_gives_what_training_merges(train, run, tmp_path):
    train("--merged {tmp}/m.safetensors")
    code, out, _ = run(
        "train merge --model {model} --adapter {tmp}/a.safetensors --out {tmp}/n.safetensors"
    )
    assert (code, out) == (0, f"{tmp_path / 'n.safetensors'}\n")
    assert same(load_file(tmp_path / "n.safetensors"), load_file(tmp_path / "m.safetensors"))
    assert load_checkpoint(tmp_path / "n.safetensors", torch.float32).faid is not None


def test_two_processes_train_what_one_does_with_twice_the_batches(
    train, tmp_path, files, model_file
):
    """The same pictures make up every update; without dropout only rounding differs."""
    settings = SMALL.replace("--accumulation 1", "--dropout 0").split()
    common = ["--model", model_file, "--images", tmp_path / "pictures", *settings]
    common += ["--index", files / "index.safetensors", "--out-dtype", "fp32"]

    def start(name, *launcher):
        more = ["--work", tmp_path / name, "--out", tmp_path / f"{name}.safetensors"]
        command = [sys.executable, *launcher, "-m", "arrag_engine", "train", "faid"]
        more += ["--accumulation", "1" if launcher else "2"]
        ended = subprocess.run(
            [str(word) for word in [*command, *common, *more]], capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        return load_file(tmp_path / f"{name}.safetensors"), ended.stdout

    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    both, said = start("two", *launcher)
    alone, _ = start("one")
    assert said.count("2 steps") == 1, "only one of them talks"
    assert both.keys() == alone.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(both[name], tensor, atol=2e-5, rtol=1e-3)
    logs = [(tmp_path / n / "log.jsonl").read_text().splitlines() for n in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) == 5
