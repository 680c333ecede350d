"""The command line: what it writes, what it says, how it ends."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from arrag_engine import draw, load_model, load_trace, session
from arrag_engine.__main__ import main
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.checkpoints.adapter import load_adapter
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.faid import Faid
from arrag_engine.grid import Grid
from arrag_engine.models.janus.prompt import unconditional
from arrag_engine.recommended import JANUS_PRO, POCKET
from arrag_engine.retrieval import layers_of, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling
from arrag_engine.shipped import INDEXES, MODELS, resolve, shipped_names
from tests.tiny import write_tiny

GENERATE = "generate --model {model} --dtype fp32 --prompt red"
DRAW = GENERATE + " --out {tmp}/a.png"


def test_a_picture_is_written_and_named(run, tmp_path):
    code, out, err = run(DRAW)
    assert (code, out) == (0, f"{tmp_path / 'a.png'}\n")
    assert err.startswith("Sampling: cfg 5, temperature 1, top_p 1 (cfg, temperature, top_p: ")
    with Image.open(tmp_path / "a.png") as image:
        assert (image.size, image.mode) == ((12, 12), "RGB")
        facts = json.loads(image.text["arrag"])
    assert (facts["prompt"], facts["seed"], facts["decoding"]) == ("red", 0, "plain")


@pytest.mark.parametrize("suffix", ["txt", "json"])
def test_credits_are_written_beside_and_into_each_picture(run, tmp_path, suffix):
    line = DRAW + " --index {files}/index.safetensors --only= --weight 0.8 --batch 2"
    assert run(f"{line} --credits {{tmp}}/c.{suffix}")[0] == 0
    for i in range(2):
        with Image.open(tmp_path / f"a-{i}.png") as image:
            credits = json.loads(image.text["arrag_credits"])
            assert image.text["arrag"]
        beside = (tmp_path / f"c-{i}.{suffix}").read_text(encoding="utf-8")
        shares = [source["share"] for source in credits["sources"]]
        assert sum(shares) + credits["model"] + credits["unlisted"] == pytest.approx(1)
        if suffix == "json":
            assert json.loads(beside) == credits
        else:
            first = credits["sources"][0]
            assert f"{100 * first['share']:5.1f} %  {first['name']}, licence CC0" in beside


def test_credits_without_retrieval_name_the_model_and_no_flag_writes_none(run, tmp_path):
    assert run(DRAW + " --credits {tmp}/c.txt")[0] == 0
    assert "100.0 %  the model" in (tmp_path / "c.txt").read_text()
    assert run(DRAW)[0] == 0
    assert "arrag_credits" not in Image.open(tmp_path / "a.png").text
    code, _, err = run(DRAW + " --credits {tmp}/c.xml")
    assert (code, "c.xml must end in .json" in err) == (2, True)


def test_the_settings_reach_the_engine(run, tmp_path, model, index):
    """Drawn with the engine directly, the same settings give the same tokens."""
    line = DRAW + " --json {tmp}/a.json --index {files}/index.safetensors --seed 11 --batch 2"
    line += " --only="
    line += " --cfg 2.5 --temperature 0.8 --top-k 50 --top-p 0.95 --weight 0.6 --window 3"
    line += " --retrieval-temperature 0.7 --neighbours 9 --duplicates sum --retrieval-top-p 0.9"
    assert run(line)[0] == 0
    report = json.loads((tmp_path / "a.json").read_text())
    codebook = model.vq.quantize.rows(torch.device("cpu")).numpy()
    options = RetrievalOptions(0.6, 0.7, 9, "sum", 0.9)
    retriever = make_retriever(index, Grid(6, 6), codebook, options)
    prompt, sampling = [1, 3, 11, 7, 5, 11, 4], Sampling(2.5, 0.8, 50, 0.95)
    drawing = draw_pictures(
        model, Recipe(prompt, unconditional(prompt, 2), sampling, layers_of(retriever)), [11, 12], 3
    )
    assert [i["tokens"] for i in report["images"]] == drawing.tokens.flatten(1).tolist()
    assert report["passes"] == drawing.passes
    pixels = np.asarray(Image.open(tmp_path / "a-1.png"))
    wanted = ((model.vq.decode(drawing.tokens[1:]) + 1) / 2 * 255).clamp(0, 255).byte()
    assert np.array_equal(pixels, wanted[0].permute(1, 2, 0).numpy())


def test_traces_are_written_and_read_again(run, tmp_path, index):
    line = DRAW + " --index {files}/index.safetensors --weight 0.6 --only= --seed 11"
    line += " --json {tmp}/a.json --trace {tmp}/t.safetensors"
    assert run(line)[0] == 0
    assert run(line + " --batch 2")[0] == 0
    traces = [load_trace(tmp_path / f"t{n}.safetensors", [index]) for n in ("", "-0", "-1")]
    shown = run("inspect {tmp}/t.safetensors")[1]
    assert all(text in shown for text in ("trace\n", "6x6", f"{len(index.tokens)} pictures ("))
    images = json.loads((tmp_path / "a.json").read_text())["images"]
    assert [trace.tokens.tolist() for trace in traces[1:]] == [i["tokens"] for i in images]
    assert np.array_equal(traces[0].tokens, traces[1].tokens)
    drawn_by = [[p.get("from_retrieval", False) for p in image["positions"]] for image in images]
    assert [trace.from_retrieval.tolist() for trace in traces[1:]] == drawn_by


def test_a_trace_has_its_suffix(run):
    assert "a.png must end in .safetensors" in run(DRAW + " --trace {tmp}/a.png")[2]


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_a_stored_dtype_draws_what_the_engine_draws_with_it(run, tmp_path, model_file, dtype):
    line = f"generate --model {{model}} --dtype {dtype} --device cpu --prompt red --seed 3"
    assert run(f"{line} --out {{tmp}}/a.png")[0] == 0
    wanted = load_model(str(model_file), dtype, "cpu")
    drawn = draw(wanted, "red", [3]).images[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(drawn))


def test_recommended_values_count_where_nothing_is_chosen(run, tmp_path):
    suits = POCKET.sampling
    assert suits != Sampling()
    run("generate --prompt x --cfg 2 --out {tmp}/a.png --json {tmp}/a.json")
    settings = json.loads((tmp_path / "a.json").read_text())["settings"]
    assert (settings["cfg"], settings["temperature"]) == (2, suits.temperature)
    run("generate --prompt x --temperature 0 --out {tmp}/a.png --json {tmp}/a.json")
    settings = json.loads((tmp_path / "a.json").read_text())["settings"]
    assert (settings["cfg"], settings["temperature"]) == (suits.cfg, 0)


@pytest.mark.parametrize("more", ["", " --weight 0.4 --neighbours 9"])
def test_the_settings_of_faid_reach_the_engine(run, tmp_path, model_file, index, files, more):
    """The weight λ beside an adapter is the recommended one, here 0, unless one is given."""
    line = DRAW + " --json {tmp}/a.json --index {files}/index.safetensors --seed 11 --window 4"
    line += " --only="
    line += " --adapter {files}/adapter.safetensors --strength 0.8 --candidates 3"
    assert run(line + " --semantics stepzero" + more)[0] == 0
    base = load_checkpoint(model_file, torch.float32)
    adapter = load_adapter(files / "adapter.safetensors", base, torch.float32)
    advised = replace(JANUS_PRO.retrieval, weight=0.0)
    options = replace(advised, weight=0.4, neighbours=9) if more else advised
    codebook = base.model.vq.codebook(torch.device("cpu"))
    retriever = make_retriever(index, Grid(6, 6), codebook, options)
    prompt, faid = base.prompt_encoder.encode("red").ids, Faid(adapter, 0.8, 3, "stepzero")
    drawing = draw_pictures(
        base.model,
        Recipe(prompt, unconditional(prompt, 2), Sampling(), layers_of(retriever), faid),
        [11],
        4,
    )
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["images"][0]["tokens"] == drawing.tokens.flatten().tolist()
    told = {"adapter", "strength", "candidates", "semantics", "retrieval_weight"}
    assert told <= report["settings"].keys()
    assert report["settings"]["retrieval_weight"] == options.weight
    neighbours = report["images"][0]["positions"][7]["layers"][0]["neighbours"]
    assert neighbours == (9 if more else 3)


def test_the_report_tells_settings_timings_and_retrieval_facts(run, tmp_path):
    run(DRAW + " --json {tmp}/a.json --index {files}/index.safetensors --only=")
    report = json.loads((tmp_path / "a.json").read_text())
    assert set(report) == {"settings", "unknown_words", "notes", "timings", "passes", "images"}
    assert report["settings"]["decoding"] == "daid"
    assert report["settings"]["retrieval_weight"] == JANUS_PRO.retrieval.weight
    assert report["settings"]["index"].endswith("index.safetensors")
    assert set(report["timings"]) == {"load_s", "draw_s", "decode_s"}
    (image,) = report["images"]
    assert image["file"] == str(tmp_path / "a.png")
    assert len(image["tokens"]) == len(image["positions"]) == 36
    first, inner = image["positions"][0], image["positions"][7]
    assert first["weight"] == 0
    assert inner["weight"] == JANUS_PRO.retrieval.weight
    assert 0 <= inner["responsibility"] <= 1
    assert inner["layers"][0]["nearest"]["source"].endswith(".png")


def test_a_negative_prompt_reaches_the_engine(run, tmp_path, model_file):
    line = DRAW + " --seed 3 --json {tmp}/a.json --negative"
    code, _, err = run(line + " purple")
    assert code == 0
    assert err.splitlines()[0] == "The model does not know, of the negative prompt: purple."
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["settings"]["negative"] == "purple"
    loaded = load_checkpoint(model_file, torch.float32)
    planned = session.plan(loaded, "red", negative="purple")
    drawn_here = session.draw(loaded, planned, [3]).tokens.flatten().tolist()
    assert report["images"][0]["tokens"] == drawn_here
    run(DRAW + " --seed 3 --json {tmp}/b.json --negative=")
    report = json.loads((tmp_path / "b.json").read_text())
    assert "negative" not in report["settings"]
    assert report["images"][0]["tokens"] != drawn_here


def test_a_negative_prompt_without_effect_is_named(run):
    code, _, err = run(DRAW + " --negative apples --cfg 1")
    assert code == 0
    assert "The negative prompt has no effect: guidance (cfg) is 1." in err.splitlines()


def test_unknown_words_are_a_warning_and_in_the_report(run, tmp_path):
    line = "generate --model {model} --prompt purple --out {tmp}/a.png --json {tmp}/a.json"
    code, _, err = run(line)
    assert code == 0
    assert err.splitlines()[0] == "The model does not know: purple."
    assert json.loads((tmp_path / "a.json").read_text())["unknown_words"] == ["purple"]


def test_a_batch_numbers_its_files_and_each_is_the_picture_alone(run, tmp_path):
    run(DRAW + " --batch 3 --seed 5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-0.png", "a-1.png", "a-2.png"]
    run(GENERATE + " --out {tmp}/b.png --seed 7")
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a-2.png").read_bytes()


def test_an_exact_batch_in_16_bit_has_the_pictures_drawn_alone(run, tmp_path):
    run(DRAW + " --batch 2 --seed 5 --dtype bf16 --exact-batch --json {tmp}/a.json")
    passes = json.loads((tmp_path / "a.json").read_text())["passes"]
    assert passes == 2 * 36  # one picture after the other
    run(GENERATE + " --out {tmp}/b.png --seed 6 --dtype bf16")
    pixels = [np.asarray(Image.open(tmp_path / name)) for name in ("a-1.png", "b.png")]
    assert np.array_equal(*pixels)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(run, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2), ("d", 2**64 + 1)):
        run(f"{GENERATE} --out {{tmp}}/{name}.png --seed {seed}")
    one, two, three = ((tmp_path / f"{n}.png").read_bytes() for n in "abc")
    assert one == two != three
    pixels = [np.asarray(Image.open(tmp_path / f"{n}.png")) for n in "ad"]
    assert np.array_equal(*pixels)


@pytest.mark.parametrize(
    ("flags", "decoding"),
    [
        ("", "plain"),
        ("--index {files}/index.safetensors", "daid"),
        ("--adapter {files}/adapter.safetensors --index {files}/index.safetensors", "faid"),
        ("--adapter {files}/adapter.safetensors", "faid"),
        ("--index {files}/index.safetensors --decoding plain", "plain"),
    ],
)
def test_with_an_index_daid_is_the_default_and_with_an_adapter_faid(run, tmp_path, flags, decoding):
    run(f"{DRAW} {flags}")
    with Image.open(tmp_path / "a.png") as image:
        assert json.loads(image.text["arrag"])["decoding"] == decoding


INDEX = "--index {files}/index.safetensors"


def test_neighbours_beyond_the_index_mean_all_of_it(run, tmp_path, index):
    code, _, _ = run(f"{DRAW} {INDEX} --only= --neighbours 1000000 --json {{tmp}}/a.json")
    assert code == 0
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["images"][0]["positions"][7]["layers"][0]["neighbours"] == 64  # kept


def test_inspect_tells_the_sizes_of_a_model(run, model, model_file):
    code, out, _ = run("inspect {model}")
    facts = dict(line.rsplit(None, 1) for line in out.splitlines())
    assert code == 0
    assert (facts["kind"], facts["grid"]) == ("model", "6x6")
    assert facts["hidden_size"] == "32"
    assert facts["vq codebook_size"] == "64"
    assert int(facts["weights"]) == sum(t.numel() for t in model.state_dict().values())
    assert int(facts["bytes"]) == model_file.stat().st_size


def test_inspect_tells_what_an_adapter_holds(run, files):
    code, out, _ = run("inspect {files}/adapter.safetensors")
    facts = dict(line.split("  ", 1) for line in out.splitlines())
    facts = {name: value.strip() for name, value in facts.items()}
    assert code == 0
    assert (facts["kind"], facts["rank"], facts["blender layers"]) == ("FAiD adapter", "4", "(0,)")
    assert facts["base"].startswith("tiny (")
    assert facts["index"] == "tiny-index (abc)"
    with safe_open(files / "adapter.safetensors", "pt") as file:
        sizes = [file.get_tensor(name).numel() for name in file.keys()]  # noqa: SIM118
    assert int(facts["weights"]) == sum(sizes)
    assert int(facts["bytes"]) == (files / "adapter.safetensors").stat().st_size


@pytest.mark.skipif(not shipped_names(MODELS), reason="no model is shipped")
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("pocket", {"models/pocket": "model", "indexes/pocket": "patch index"}),
        ("indexes/pocket", {"indexes/pocket": "patch index"}),
        ("adapters/pocket", {"adapters/pocket": "FAiD adapter"}),
        ("adapters/pocket-o", {"adapters/pocket-o": "FAiD adapter"}),
    ],
)
def test_inspect_shows_everything_shipped_under_a_name(run, name, shown):
    if name == "pocket":
        shown |= {"adapters/pocket": "FAiD adapter"}
    code, out, _ = run(f"inspect {name}")
    blocks = [
        {line.split("  ")[0]: line.split("  ")[-1].strip() for line in block.splitlines()}
        for block in out.split("\n\n")
    ]
    assert code == 0
    assert {block["name"]: block["kind"] for block in blocks} == shown


@pytest.mark.skipif(not shipped_names(MODELS), reason="no model is shipped")
def test_the_sheet_of_a_name_is_that_of_its_index(run, tmp_path):
    assert run("inspect pocket --sheet {tmp}/sheet.png")[0] == 0
    assert (tmp_path / "sheet.png").is_file()
    code, _, err = run("inspect models/pocket --sheet {tmp}/other.png")
    assert code == 2
    assert "models/pocket is not an index" in err


def test_convert_draws_the_same(run, tmp_path):
    code, out, _ = run("convert {model} --out {tmp}/m.safetensors")
    assert (code, out) == (0, f"{tmp_path / 'm.safetensors'}\n")
    run(DRAW)
    run("generate --model {tmp}/m.safetensors --dtype fp32 --prompt red --out {tmp}/b.png")
    pixels = [np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "ab"]
    assert np.array_equal(*pixels)


def test_a_stop_by_the_user_is_no_traceback_and_leaves_nothing(run, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "draw_pictures", stopped)
    code, out, err = run(DRAW)
    assert (code, out, err.splitlines()[-1]) == (1, "", "stopped")
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_program_is_not_blamed_on_the_person(run, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("bug")

    monkeypatch.setattr(session, "draw_pictures", broken)
    with pytest.raises(RuntimeError, match="bug"):
        run(DRAW)


def test_the_program_ends_with_2_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "arrag_engine", "verify", str(tmp_path / "none")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {tmp_path / 'none'} is no folder; ")
    assert ended.stderr.count("\n") == 1


def test_commands_turn_gradients_off_by_themselves(run):
    with torch.inference_mode(False), torch.enable_grad():
        line = "build --model {model} --images {files}/pictures --out {tmp}/i.safetensors"
        assert run(line)[0] == 0
        assert run(f"{DRAW} --index {{tmp}}/i.safetensors --batch 2")[0] == 0


def test_a_shipped_name_comes_before_a_path(tmp_path, monkeypatch):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    write_tiny(shelf / "small.safetensors")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").touch()
    assert shipped_names(shelf) == ["small"]
    assert resolve("small", shelf) == shelf / "small.safetensors"
    assert resolve("./small", shelf).resolve() == tmp_path / "small"


@pytest.mark.skipif(not shipped_names(MODELS), reason="no model is shipped")
def test_the_shipped_model_and_index_draw(run, tmp_path):
    assert "pocket" in shipped_names(MODELS)
    assert "pocket" in shipped_names(INDEXES)
    line = "generate --prompt apples --index pocket --window 16 --out {tmp}/a.png"
    assert run(line)[0] == 0
    assert (tmp_path / "a.png").is_file()


@pytest.mark.skipif(not shipped_names(MODELS), reason="no model is shipped")
def test_what_is_shipped_stays_small():
    assert sum(p.stat().st_size for p in MODELS.parent.rglob("*") if p.is_file()) < 45e6


@pytest.mark.parametrize(("chosen", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_without_spinning_unless_told_otherwise(monkeypatch, chosen, expected):
    monkeypatch.setenv("OMP_WAIT_POLICY", chosen or "")  # so that it is restored
    if chosen is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(sys, "argv", ["arrag", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert os.environ["OMP_WAIT_POLICY"] == expected


def test_a_picture_is_edited(run, tmp_path):
    """What the mask leaves black keeps its tokens; redraw changes a share of the rest."""
    picture, mask = tmp_path / "picture.png", tmp_path / "mask.png"
    noise = np.random.default_rng(0).integers(0, 255, (12, 12, 3), np.uint8)
    Image.fromarray(noise).save(picture)
    white = Image.new("L", (24, 24))
    white.paste(255, (0, 16, 24, 24))  # the lower two of six rows
    white.save(mask)
    edit = f"{DRAW} --edit {picture} --json {{tmp}}/a.json"
    drawn = {}
    for name, flags in (("none", "--redraw 0"), ("low", f"--mask {mask}"), ("few", "--redraw 0.1")):
        code, _, err = run(f"{edit} {flags}")
        assert code == 0
        assert "are drawn anew" in err
        report = json.loads((tmp_path / "a.json").read_text())
        assert report["settings"]["edit"] == str(picture)
        drawn[name] = np.array(report["images"][0]["tokens"])
    assert (drawn["low"] == drawn["none"])[:24].all()
    assert (drawn["low"] != drawn["none"])[24:].any()
    assert 0 < (drawn["few"] != drawn["none"]).sum() <= 4
    white.paste(0, (0, 0, 24, 24))
    white.save(mask)
    code, _, err = run(f"{edit} --mask {mask}")
    assert code == 2
    assert "the mask is empty" in err
