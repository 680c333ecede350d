"""Input at fault: one sentence, exit code 2, nothing written."""

import pytest

from arrag_engine.cli import main

GENERATE = "generate --model {model} --dtype fp32 --prompt red"
DRAW = GENERATE + " --out {tmp}/a.png"
INDEX = "--index {files}/index.safetensors"
BAD_INPUT = {
    "weight above 1": (f"{DRAW} {INDEX} --weight 1.5", "--weight is 1.5; choose 0 to 1, or auto"),
    "weight below 0": (f"{DRAW} {INDEX} --weight -0.1", "--weight is -0.1"),
    "weight nan": (f"{DRAW} {INDEX} --weight nan", "--weight is nan"),
    "tau 0": (
        f"{DRAW} {INDEX} --retrieval-temperature 0",
        "--retrieval-temperature is 0.0; choose 0.0001 to 1000",
    ),
    "tau tiny": (
        f"{DRAW} {INDEX} --retrieval-temperature 1e-40",
        "--retrieval-temperature is 1e-40",
    ),
    "K 0": (f"{DRAW} {INDEX} --neighbours 0", "--neighbours is 0; choose 1 to 1000000"),
    "K negative": (f"{DRAW} {INDEX} --neighbours -5", "neighbours is -5"),
    "retrieval top_p": (f"{DRAW} {INDEX} --retrieval-top-p 0", "--retrieval-top-p is 0.0"),
    "cfg": (f"{DRAW} --cfg -1", "--cfg is -1.0; choose 0 to 100"),
    "temperature": (
        f"{DRAW} --temperature inf",
        "--temperature is inf; choose 0.0001 to 100, or 0",
    ),
    "top_k": (f"{DRAW} --top-k -1", "--top-k is -1"),
    "top_p": (f"{DRAW} --top-p 1.1", "--top-p is 1.1; choose more than 0, at most 1"),
    "negative prompt endless": (
        f"{DRAW} --negative {'x' * 20_001}",
        "the negative prompt has 20001 characters, at most 20000 are allowed",
    ),
    "negative prompt too long": (
        f"{DRAW} --negative {'red,' * 300}",
        "at most 476 are allowed; shorten it",
    ),
    "window": (f"{DRAW} --window -1", "--window is -1; choose 0 to 4096"),
    "batch 0": (f"{DRAW} --batch 0", "--batch is 0; choose 1 to 64"),
    "batch 65": (f"{DRAW} --batch 65", "--batch is 65"),
    "seed of a thousand bits": (f"{DRAW} --seed {2**1000}", "--seed is a number of 1001 bits"),
    "K endless": (f"{DRAW} {INDEX} --neighbours 1000000000", "--neighbours is 1000000000; choose"),
    "no index": (f"{DRAW} --decoding daid", "--decoding daid needs --index"),
    "mask": (f"{DRAW} --mask a.png --redraw 0.5", "--mask and --redraw need --edit; pass the"),
    "times": (f"{DRAW} --edit a.png --times 2", "--times needs --outpaint; pass the side"),
    "outpaint alone": (f"{DRAW} --outpaint up", "--outpaint needs --edit; pass the picture"),
    "outpaint and mask": (
        f"{DRAW} --edit a.png --outpaint up --mask a.png",
        "--outpaint keeps all tokens of the picture and writes no trace; omit --mask, or",
    ),
    "outpaint and credits": (
        f"{DRAW} --edit a.png --outpaint up --credits a.txt",
        "writes no trace; omit --credits, or --outpaint",
    ),
    "no picture": (f"{DRAW} --edit {{tmp}}/no.png", "no.png: not a readable picture"),
    "faid of a plain model": (
        f"{DRAW} --decoding faid",
        "has no FAiD blenders of its own; pass an --adapter",
    ),
    "adapter and daid": (
        f"{DRAW} {INDEX} --adapter x --decoding daid",
        "--decoding daid does not use --adapter; choose faid",
    ),
    "adapter missing": (
        f"{DRAW} --adapter {{tmp}}/none",
        "none is neither a file or folder nor a shipped name",
    ),
    "adapter is a model": (f"{DRAW} --adapter {{model}}", "is not an adapter"),
    "strength": (f"{DRAW} --adapter {{files}}/adapter.safetensors --strength 2.5", "choose 0 to 2"),
    "candidates": (
        f"{DRAW} {INDEX} --adapter {{files}}/adapter.safetensors --candidates -1",
        "candidates is -1",
    ),
    "another model's adapter": (
        f"{DRAW} --adapter {{files}}/other-adapter.safetensors",
        "trained on 'other', this model is 'tiny'",
    ),
    "device": (f"{DRAW} --device nonsense", "--device nonsense is not usable here"),
    "device without memory": (f"{DRAW} --device meta", "--device meta is not usable here"),
    "model missing": (
        "generate --model {tmp}/none --prompt red --out {tmp}/a.png",
        "none is neither a file or folder nor a shipped name (",
    ),
    "model cut": (
        "generate --model {files}/cut-model.safetensors --prompt red --out {tmp}/a.png",
        "is truncated",
    ),
    "model is an index": (
        "generate --model {files}/index.safetensors --prompt red --out {tmp}/a.png",
        "config.json and tokenizer.json missing",
    ),
    "index missing": (
        f"{DRAW} --index {{tmp}}/none",
        "none is neither a file or folder nor a shipped name",
    ),
    "index of another VQ": (
        f"{DRAW} --index {{files}}/other-vq.safetensors",
        "the index was built with another VQ",
    ),
    "index of another grid": (
        f"{DRAW} --index {{files}}/other-grid.safetensors",
        "the index was built for a 5x6 grid, the model draws 6x6",
    ),
    "index cut": (f"{DRAW} --index {{files}}/cut-index.safetensors", "not a readable .safetensors"),
    "index of a later version": (
        f"{DRAW} --index {{files}}/later-index.safetensors",
        "index version '3', this program reads 2",
    ),
    "index is a model": (f"{DRAW} --index {{model}}", "is not a patch index"),
    "index is a folder": (f"{DRAW} --index {{files}}", "is a folder; choose a file"),
    "out folder missing": (f"{GENERATE} --out {{tmp}}/no/a.png", "there is no folder"),
    "out no png": (f"{GENERATE} --out {{tmp}}/a.jpg", "must end in .png"),
    "out is a folder": (f"{GENERATE} --out {{tmp}}/folder.png", "folder.png is a folder"),
    "report no json": (f"{DRAW} --json {{tmp}}/a.txt", "must end in .json"),
    "report folder missing": (f"{DRAW} --json {{tmp}}/no/a.json", "there is no folder"),
    "report is a folder": (f"{DRAW} --json {{tmp}}/folder.json", "folder.json is a folder"),
    "build without pictures": (
        "build --model {model} --images {files}/no-pictures --out {tmp}/i.safetensors",
        "holds no readable picture",
    ),
    "build from nowhere": (
        "build --model {model} --images {tmp}/none --out {tmp}/i.safetensors",
        "there is no folder",
    ),
    "build into nowhere": (
        "build --model {model} --images {files}/pictures --out {tmp}/no/i.safetensors",
        "there is no folder",
    ),
    "build another suffix": (
        "build --model {model} --images {files}/pictures --out {tmp}/i.index",
        "must end in .safetensors",
    ),
    "build for exact search with another": (
        "build --model {model} --images {files}/pictures --out {tmp}/i.safetensors "
        "--structure ivf --recall-target 1",
        "a recall target of 1 needs exact search, which ivf is not",
    ),
    "build what keys cannot have": (
        "build --model {model} --images {files}/pictures --out {tmp}/i.safetensors "
        "--structure compact",
        "a compact structure needs keys of the codebook key space",
    ),
    "build from a file": (
        "build --model {model} --images {model} --out {tmp}/i.safetensors",
        "is a file; choose a folder",
    ),
    "out in loud letters": (
        "build --model {model} --images {files}/pictures --out {tmp}/i.SAFETENSORS",
        "must end in .safetensors",
    ),
    "inspect nothing": ("inspect {tmp}/none", "there is no file or folder"),
    "inspect a cut index": (
        "inspect {files}/cut-index.safetensors",
        "truncated or not a .safetensors",
    ),
    "inspect a later index": ("inspect {files}/later-index.safetensors", "index version '3'"),
    "convert nothing": (
        "convert {tmp}/none --out {tmp}/m.safetensors",
        "is neither a file or folder nor a shipped name",
    ),
    "convert a cut model": (
        "convert {files}/cut-model.safetensors --out {tmp}/m.safetensors",
        "is truncated",
    ),
    "convert into nowhere": ("convert {model} --out {tmp}/no/m.safetensors", "there is no folder"),
    "verify nothing": ("verify {tmp}/none", "is no folder; choose a folder of golden numbers"),
    "verify no fixture": (
        "verify {files}",
        "has no settings.json; choose a folder of golden numbers, which the reference programs",
    ),
}


@pytest.mark.parametrize(("line", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_sentence_exit_code_2_and_nothing_written(run, tmp_path, line, message):
    for name in ("folder.png", "folder.json"):
        (tmp_path / name).mkdir()
    code, out, err = run(line)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder.json", "folder.png"]


EMPTY = {
    **{f"generate {f}": f"{DRAW} {f}=" for f in ("--model", "--index", "--adapter", "--json")},
    "generate --out": f"{GENERATE} --out=",
    "build --images": "build --images= --out {tmp}/i.safetensors",
    "build --out": "build --images {files}/pictures --out=",
    "add --images": "add {files}/index.safetensors --images=",
    "convert --out": "convert {model} --out=",
    "inspect --sheet": "inspect pocket --sheet=",
    "train faid --images": "train faid --images= --index pocket --work {tmp}/w --out {tmp}/a",
    "train faid --work": "train faid --images {files} --index pocket --work= --out {tmp}/a",
    "train faid --merged": "train faid --images {files} --work {tmp}/w --out {tmp}/a --merged=",
    "train loss --index": "train loss --images {files} --index=",
    "train merge --adapter": "train merge --adapter= --out {tmp}/m.safetensors",
    "eval --scorer": "eval pocket --scorer=",
    "calibrate --known": "calibrate --index pocket --images x --out {tmp}/i --known=",
}


@pytest.mark.parametrize(("command", "line"), EMPTY.items(), ids=EMPTY)
def test_an_unset_variable_of_a_shell_is_no_value(run, tmp_path, command, line):
    code, out, err = run(line)
    assert (code, out) == (2, "")
    assert err == f"error: {command.split()[-1]} is empty; pass a value\n"
    assert not list(tmp_path.iterdir())


def test_empty_positional_names_are_refused(capsys, tmp_path):
    for words in (["inspect", ""], ["verify", ""], ["check", ""], ["merge", "", "--out", "m"]):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_files_to_read_are_looked_at_before_the_model_is_loaded(run, monkeypatch):
    """A large model loads for a minute."""

    def loaded(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("arrag_engine.checkpoints.load_checkpoint", loaded)
    pictures = "{files}/pictures"
    for line in (
        f"{DRAW} --index {{files}}/cut-index.safetensors",
        f"{DRAW} --adapter {{files}}/index.safetensors",
        f"{DRAW} --index {{tmp}}/none",
        "build --model {model} --images {tmp}/none --out {tmp}/i.safetensors",
        "add {files}/index.safetensors --images {tmp}/none --out {tmp}/i.safetensors",
        "train faid --images {tmp}/none --index pocket --work {tmp}/w --out {tmp}/a.safetensors",
        f"train loss --images {pictures} --adapter {{model}}",
        f"calibrate --index {{model}} --images {pictures} --out {{tmp}}/i.safetensors",
        "eval pocket --index {model}",
    ):
        code, _, err = run(line)
        assert (code, err.count("\n")) == (2, 1), line


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ("  \n", "the prompt is empty"),
        ("apples " * 10_000, "the prompt has 70000 characters"),
        ("caf\udce9", "incomplete character"),
    ],
    ids=["empty", "blank", "ten thousand words", "broken bytes"],
)
def test_a_bad_prompt_is_one_sentence(model_file, tmp_path, capsys, prompt, message):
    out = str(tmp_path / "a.png")
    code = main(["generate", "--model", str(model_file), "--prompt", prompt, "--out", out])
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line",
    [
        *("", "paint", "generate", "build --images x", "verify"),
        *(f"{DRAW} --{flag}" for flag in ("seed x", "dtype int4", "decoding none", "weight much")),
    ],
)
def test_a_command_that_cannot_be_parsed_ends_with_2(run, tmp_path, line):
    code, _, err = run(line)
    assert code == 2
    assert "usage:" in err
    assert not list(tmp_path.iterdir())
