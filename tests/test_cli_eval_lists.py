"""`eval geneval`, `eval dpg` and `eval prompts`: what lies in the folder, and how a run goes on."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arrag_engine import draw, load_index, load_model
from arrag_engine.cli import eval_lists
from arrag_engine.evaluate import listed
from arrag_engine.index import save_index
from arrag_engine.layers import Layer
from scripts.comfyui import ROOT
from tests.tiny_showo import showo_folder, sign_index, tiny_showo

RECORDS = [
    {"tag": "single_object", "include": [{"class": "car", "count": 1}], "prompt": "a car"},
    {
        "tag": "colors",
        "include": [{"class": "car", "count": 1, "color": "red"}],
        "prompt": "a red car",
    },
    {"tag": "counting", "include": [{"class": "apple", "count": 2}], "prompt": "two apples"},
]
FLAGS = "--model {model} --dtype fp32 --out {tmp}/out"
INDEX = " --index {files}/index.safetensors --only= --weight 0.5"


@pytest.fixture
def lists(tmp_path):
    """The prompts as each benchmark has them."""
    folder = tmp_path / "lists"
    (folder / "dpg").mkdir(parents=True)
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (folder / "geneval.jsonl").write_text(lines)
    for name, record in zip(("9", "10", "coco2"), RECORDS, strict=True):
        (folder / "dpg" / f"{name}.txt").write_text(record["prompt"])
    (folder / "list.txt").write_text("a car\na red car\ntwo apples\n")
    return folder


def tree(folder):
    """Every file below a folder with its bytes, but for what a run keeps of itself."""
    own = ("manifest", "done")
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in paths
        if not path.name.startswith(own)
    }


def pixels(path):
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def alone(model_file, prompt, seed, **more):
    """The picture that the API draws."""
    drawing = draw(load_model(str(model_file), "fp32"), prompt, [seed], **more)
    return np.asarray(drawing.images[0])


def test_geneval_has_the_layout_of_its_scorer(run, lists, tmp_path, model_file, files):
    code, out, err = run(f"eval geneval --prompts {lists}/geneval.jsonl --seeds 3 {FLAGS}{INDEX}")
    assert code == 0, err
    methods = ["plain", "daid", "control"]
    assert out.splitlines() == [str(tmp_path / "out" / method) for method in methods]
    files_there = tree(tmp_path / "out")
    wanted = ["metadata.jsonl", "grid.png", *(f"samples/000{i}.png" for i in range(3))]
    assert set(files_there) == {
        f"{method}/0000{number}/{name}"
        for method in methods
        for number in range(3)
        for name in wanted
    }
    for number, record in enumerate(RECORDS):
        text = files_there[f"daid/0000{number}/metadata.jsonl"]
        assert text == json.dumps(record).encode()
    out = tmp_path / "out"
    plain = pixels(out / "plain/00001/samples/0002.png")
    assert (plain == alone(model_file, "a red car", 2)).all()
    layer = Layer(load_index(str(files / "index.safetensors")), only="", weight=0.5)
    drawn = alone(model_file, "a red car", 2, layers=[layer])
    assert (pixels(out / "daid/00001/samples/0002.png") == drawn).all()
    assert (plain != drawn).any()
    grid = pixels(out / "plain/00001/grid.png")
    assert (grid[12:, :12] == plain).all()  # the third of a 2x2 sheet


def test_dpg_has_one_picture_of_four_for_each_text(run, lists, tmp_path, model_file):
    code, _, err = run(f"eval dpg --prompts {lists}/dpg {FLAGS} --first-seed 5")
    assert code == 0, err
    assert set(tree(tmp_path / "out")) == {"plain/9.png", "plain/10.png", "plain/coco2.png"}
    sheet = pixels(tmp_path / "out/plain/10.png")
    assert sheet.shape == (24, 24, 3)
    for seed, (top, left) in enumerate([(0, 0), (0, 12), (12, 0), (12, 12)], start=5):
        part = sheet[top : top + 12, left : left + 12]
        assert (part == alone(model_file, "a red car", seed)).all()


def test_other_lists_are_numbered(run, lists, tmp_path, model_file):
    line = f"eval prompts --prompts {lists}/list.txt {FLAGS}"
    assert run(line)[0] == 0
    names = ["00000.png", "00001.png", "00002.png"]
    assert set(tree(tmp_path / "out")) == {f"plain/{name}" for name in names}
    drawn = pixels(tmp_path / "out/plain/00002.png")
    assert (drawn == alone(model_file, "two apples", 0)).all()
    assert run(f"{line}2 --seeds 2 --limit 2 --negative red")[0] == 0
    assert set(tree(tmp_path / "out2")) == {
        f"plain/{name}" for name in ("00000-0.png", "00000-1.png", "00002-0.png", "00002-1.png")
    }
    drawn = pixels(tmp_path / "out2/plain/00002-1.png")
    assert (drawn == alone(model_file, "two apples", 1, negative="red")).all()


def test_the_manifest_says_what_was_drawn_with_what(run, lists, tmp_path):
    flags = f"{FLAGS}{INDEX} --cfg 2 --adapter {{files}}/adapter.safetensors --methods plain,faid"
    assert run(f"eval prompts --prompts {lists}/list.txt {flags}")[0] == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    settings = manifest["settings"]
    assert settings["sampling"]["cfg"] == 2
    assert settings["seeds"] == [0, 1]
    assert settings["layers"]["1"]["weight"] == 0.5
    assert {len(settings[name]) for name in ("weights", "prompts")} == {16}
    assert len(settings["adapter"]) == 64
    assert manifest["device"] == "cpu"
    assert manifest["versions"]["torch"]
    pictures = tree(tmp_path / "out")
    assert len(pictures) == 6
    assert manifest["pictures"] == {
        name: hashlib.sha256(data).hexdigest() for name, data in pictures.items()
    }


def test_shards_add_up_to_the_whole(run, lists, tmp_path):
    line = f"eval geneval --prompts {lists}/geneval.jsonl --seeds 2{INDEX} {FLAGS}"
    assert run(f"{line}-whole")[0] == 0
    for shard in ("2/2", "1/2"):
        assert run(f"{line} --shard {shard}")[0] == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "out-whole")
    assert (tmp_path / "out" / "manifest-2-of-2.json").is_file()


def test_nothing_is_drawn_twice_and_what_is_damaged_is_drawn_again(
    run, lists, tmp_path, monkeypatch
):
    line = f"eval prompts --prompts {lists}/list.txt {FLAGS}"
    assert run(f"{line} --limit 2")[0] == 0
    before, drawn, draw_tokens = tree(tmp_path / "out"), [], listed.draw_tokens

    def counted(checkpoint, planned, *more):
        drawn.append(planned.prompt.text)
        return draw_tokens(checkpoint, planned, *more)

    monkeypatch.setattr(listed, "draw_tokens", counted)
    assert run(line)[0] == 0
    assert drawn == ["a red car"]
    (tmp_path / "out/plain/00000.png").write_bytes(b"")
    (tmp_path / "out/plain/00002.png").unlink()
    assert run(line)[0] == 0
    assert drawn[1:] == ["a car", "two apples"]
    after = tree(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert run(f"{line} --methods plain,daid{INDEX}")[0] == 2  # an index is a setting


def test_a_killed_run_goes_on(run, lists, tmp_path, model_file):
    (lists / "long.txt").write_text("a red car\n" * 40)
    line = f"eval prompts --prompts {lists}/long.txt --seeds 2 {FLAGS}"
    words = [w.format(tmp=tmp_path, model=model_file) for w in line.split()]
    command = [sys.executable, "-m", "arrag_engine", *words]
    started = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    done = tmp_path / "out" / "done.jsonl"
    while not done.exists() or done.read_bytes().count(b"\n") < 3:
        assert started.poll() is None
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    started.wait()
    kept = done.read_bytes()
    for left in (tmp_path / "out").rglob(".*"):  # a lock, and a picture that was being written
        left.unlink()
    pictures = tree(tmp_path / "out")
    assert run(line)[0] == 0
    assert done.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert done.read_bytes().count(b"\n") == 40
    after = tree(tmp_path / "out")
    assert len(after) == 80
    whole = [name for name in pictures if pictures[name] == after[name]]
    assert len(whole) >= 6


def test_settings_that_change_half_way_are_refused(run, lists, tmp_path):
    line = f"eval prompts --prompts {lists}/list.txt {FLAGS} --limit 1"
    assert run(line)[0] == 0
    for flags, name in (
        ("--temperature 0.5", "sampling.temperature None, this command has 0.5"),
        ("--seeds 2", r"seeds \[0, 1\], this command has \[0, 2\]"),
        ("--negative red", "negative '', this command has 'red'"),
        ("--batch 2", "batch 4, this command has 2"),
    ):
        code, out, err = run(f"{line} {flags}")
        assert (code, out) == (2, "")
        assert re.search(f"manifest.json was begun with {name}; use the same", err), err
    (lists / "list.txt").write_text("a car\n")
    assert "was begun with prompts" in run(line)[2]
    assert len(tree(tmp_path / "out")) == 1


def test_a_model_that_draws_in_any_order(run, lists, tmp_path):
    folder = showo_folder(tmp_path / "showo", tiny_showo())
    save_index(sign_index(), tmp_path / "signs.safetensors")
    line = f"eval geneval --prompts {lists}/geneval.jsonl --seeds 2 --limit 1 --steps 3"
    line += f" --model {folder} --dtype fp32 --out {{tmp}}/out --index {{tmp}}/signs.safetensors"
    code, _, err = run(f"{line} --only= --weight 0.5")
    assert code == 0, err
    assert "daid: Schedule: 3 steps" in err
    assert len(tree(tmp_path / "out")) == 3 * 4
    plain = pixels(tmp_path / "out/plain/00000/samples/0001.png")
    assert (plain != pixels(tmp_path / "out/daid/00000/samples/0001.png")).any()


def test_the_control_lacks_what_the_prompt_is_about(run, files, model_file):
    """The index has "picture 0" to "picture 4"; a prompt about one of them must not see it."""
    index, model = load_index(str(files / "index.safetensors")), load_model(str(model_file), "fp32")
    prompt = model.prompt_encoder.encode("a 3")
    about = Layer(index)
    assert listed.without_subject(about, prompt, True).index.images.tolist() == [0, 1, 2, 4]
    whole = Layer(index, only="")
    assert listed.without_subject(whole, prompt, True).index.images.tolist() == [0, 1, 2, 4]
    known = model.prompt_encoder.encode("a red car")
    assert listed.without_subject(about, known, True) is None  # DAiD retrieves nothing either
    every = model.prompt_encoder.encode("picture")
    assert listed.without_subject(about, every, True) is None  # no other picture is left


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--methods daid", "the method daid looks patches up; pass an index"),
        ("--methods magic", "choose some of plain, daid"),
        ("--shard 3/2", "--shard is 3/2; write I/N"),
        ("--shard 0/2", "--shard is 0/2; write I/N"),
        ("--weight 0.5", "--weight needs --index"),
        ("--adapter pocket", "--adapter needs the method faid"),
        ("--steps 3", "draws in raster order"),
        ("--batch 65", "--batch is 65; choose 1 to 64"),
        ("--prompts {tmp}/none.txt", "there is no file"),
        ("--column text", "is text without columns"),
        ("--model {tmp}/none", "none"),
    ],
)
def test_wrong_flags_are_one_sentence(run, lists, tmp_path, flags, message):
    code, out, err = run(f"eval prompts --prompts {lists}/list.txt {FLAGS} {flags}")
    assert (code, out) == (2, "")
    assert re.search(message, err), err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_dpg_takes_four_pictures_only(run, lists):
    code, _, err = run(f"eval dpg --prompts {lists}/dpg --seeds 3 {FLAGS}")
    assert (code, "--seeds is 3; DPG-Bench's scorer reads 4" in err) == (2, True)


def test_a_prompt_that_does_not_fit_the_model_is_refused_with_its_line(run, lists, tmp_path):
    (lists / "list.txt").write_text("a car\n" + "car " * 2000 + "\n")
    code, _, err = run(f"eval prompts --prompts {lists}/list.txt {FLAGS}")
    assert code == 2
    assert re.search(r"line 2 of .*list.txt: the prompt has \d+ tokens, at most", err), err
    assert not (tmp_path / "out").exists()


def test_progress_counts_from_where_the_run_goes_on(run, lists, monkeypatch):
    seen = []

    class Recorded(eval_lists.Bars):
        def __call__(self, unit, done, total, note=""):
            seen.append((unit, done, total))

    line = f"eval prompts --prompts {lists}/list.txt {FLAGS}"
    assert run(f"{line} --limit 1")[0] == 0
    monkeypatch.setattr(eval_lists, "Bars", Recorded)
    assert run(line)[0] == 0
    assert seen == [("prompt", done, 3) for done in (1, 2, 3)]


BENCHMARKS = os.environ.get("ARRAG_BENCHMARKS", ROOT.parent / "shared" / "benchmarks")


@pytest.mark.skipif(not Path(BENCHMARKS).is_dir(), reason="the benchmarks are not here")
def test_a_slice_of_the_benchmarks_with_pocket(run, tmp_path):
    geneval = f"{BENCHMARKS}/geneval/evaluation_metadata.jsonl"
    code, _, err = run(f"eval geneval --prompts {geneval} --limit 2 --seeds 1 --out {{tmp}}/g")
    assert code == 0, err
    lines = Path(geneval).read_bytes().splitlines()
    for number in (0, 552):
        folder = tmp_path / "g" / "plain" / f"{number:05}"
        assert (folder / "metadata.jsonl").read_bytes() == lines[number]
        assert pixels(folder / "samples" / "0000.png").shape == (96, 96, 3)
    code, _, err = run(
        f"eval dpg --prompts {BENCHMARKS}/dpg/dpg_bench/prompts --limit 1 --out {{tmp}}/d"
    )
    assert code == 0, err
    [picture] = (tmp_path / "d" / "plain").iterdir()
    assert pixels(picture).shape == (192, 192, 3)
