"""The kit from end to end: what it measures, writes, keeps and shows."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.cli import eval_kit
from arrag_engine.decode import Recipe
from arrag_engine.decode.canvas import begin
from arrag_engine.decode.masked import look_up, of_tokens
from arrag_engine.decode.masked import mixed as masked_mixture
from arrag_engine.decode.masked_passes import open_prompts, predict
from arrag_engine.evaluate.benchmark import no_progress
from arrag_engine.evaluate.journal import Journal
from arrag_engine.evaluate.kit import effort, pace
from arrag_engine.evaluate.kit.checks import JANUS_IDS, SPOKEN, look, text_ids
from arrag_engine.evaluate.kit.effort import QUICK
from arrag_engine.evaluate.kit.material import HeldOut
from arrag_engine.evaluate.kit.recommend import entry, from_facts, recommend, to_facts
from arrag_engine.evaluate.kit.settings import SHARES, Bits, Setting, variants
from arrag_engine.index import KeySpec, load_index
from arrag_engine.layers import Layer
from arrag_engine.likelihood import bits, mixed, model_probabilities, retrieve_truth
from arrag_engine.recommended import JANUS_PRO, POCKET, Recommended
from arrag_engine.retrieval import Layers, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling, Schedule
from tests.tiny_showo import showo_folder, sign_index, tiny_showo

LEAST = replace(
    *(QUICK,),
    **{"pictures": 12, "batches": (1,), "windows": (1,), "prompts": 1, "rounds": 1},
    **{"taus": (0.1,), "neighbours": (16,), "drawn_weights": (0.9,)},
)


@pytest.fixture
def least(monkeypatch):
    monkeypatch.setitem(effort.EFFORTS, True, LEAST)


@pytest.fixture
def images(tmp_path):
    """Pictures whose names and captions want to be more than text."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = [f"{n:02}" for n in range(22)]
    names[3], names[9] = "<script>alert(1)<", '"><img src=x onerror=y>\n'
    for number, name in enumerate(names):
        noise = np.random.default_rng(number).integers(0, 256, (14, 14, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{name.replace('/', '_')}.png")
        caption = "a red car" if number % 2 else "two <b>apples</b>"
        (folder / f"{name.replace('/', '_')}.txt").write_text(caption)
    (folder / "<script>broken<.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (folder / "15.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    return folder


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = set(), set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        for name, value in attributes:
            assert name != "src" or value.startswith("data:image/jpeg;base64,")

    def handle_data(self, data):
        self.texts.append(data)


def test_a_tiny_model_from_end_to_end(run, images, tmp_path):
    line = f"eval kit --model {{model}} --dtype fp32 --images {images} --out {{tmp}}/out --quick"
    code, out, err = run(line)
    assert code == 0, err
    folder = tmp_path / "out"
    told, *paths = out.splitlines()
    assert paths == [str(folder / n) for n in ("kit.json", "kit.html", "sheet.png")]
    assert told.startswith("WRONG: picture tokenizer: ")  # its weights are random
    facts = json.loads((folder / "kit.json").read_text())
    assert facts["pictures"] == {"index": 16, "captioned": 16, "held_out": 2}  # and 2 are broken
    assert [check["name"] for check in facts["checks"]] == [
        *("keys and sizes", "text ids", "a drawn picture", "picture tokenizer")
    ]
    assert facts["checks"][1]["right"] is None
    measured = {(row["batch"], row["window"]) for row in facts["pace"] if row["seconds"] > 0}
    assert measured == {(1, 1), (1, 4), (2, 1), (2, 4)}
    assert facts["pace"][0]["passes"] == 36
    assert {row["method"] for row in facts["accepted"]} == {"plain", "daid"}
    assert all(row["tokens a pass"] >= 1 for row in facts["accepted"])
    assert len(facts["bits"]) == 1 + 3 * 2 * 2 * 2  # causal-24 has no place on a 6x6 grid
    assert facts["bits"][1:] == sorted(facts["bits"][1:], key=lambda row: row["bits"])
    drawings = {row["drawn"]: row for row in facts["drawings"]}
    assert drawings["the model alone"]["changed"] == 0
    assert drawings["λ 0.9"]["changed"] > 0
    page = (folder / "kit.html").read_text(encoding="utf-8")
    parsed = Page(page)
    assert not parsed.tags & {"script", "b", "a", "link"}
    assert parsed.attributes <= {
        *("lang", "charset", "http-equiv", "content", "class", "alt", "src")
    }
    shown = "".join(parsed.texts)
    assert "two <b>apples</b>" in shown
    assert "2 pictures cannot be read" in shown
    assert "script" not in (folder / "kit.json").read_text()
    assert Image.open(folder / "sheet.png").size == (12 * len(drawings), 12 * 2)


def test_a_stopped_kit_goes_on_and_measures_nothing_twice(
    run, images, tmp_path, monkeypatch, least
):
    line = f"eval kit --model {{model}} --dtype fp32 --images {images} --out {{tmp}}/out --quick"
    seen = []

    class Stopping(eval_kit.Bars):
        def __call__(self, unit, done, total, note=""):
            seen.append(unit)
            if unit == "drawing" and done == 2 and seen.count("drawing") == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(eval_kit, "Bars", Stopping)
    code, _, err = run(line)
    assert (code, err.splitlines()[-1]) == (1, "stopped; the same command continues")
    before = (tmp_path / "out" / "done.jsonl").read_bytes()
    assert not (tmp_path / "out" / "kit.json").exists()
    assert run(line)[0] == 0
    after = (tmp_path / "out" / "done.jsonl").read_bytes()
    assert after.startswith(before)
    keys = [json.dumps(json.loads(line)[0]) for line in after.splitlines()]
    assert len(set(keys)) == len(keys)
    assert run(line)[0] == 0
    assert (tmp_path / "out" / "done.jsonl").read_bytes() == after
    code, _, err = run(line.replace(" --quick", ""))
    assert (code, "was begun with quick True, this command has False" in err) == (2, True)


def test_a_model_that_draws_in_any_order(run, images, tmp_path, least):
    folder = showo_folder(tmp_path / "showo", tiny_showo())
    code, _, err = run(
        f"eval kit --model {folder} --dtype fp32 --images {images} --out {{tmp}}/out --quick"
    )
    assert code == 0, err
    facts = json.loads((tmp_path / "out" / "kit.json").read_text())
    assert facts["accepted"] == []
    assert {row["neighborhood"] for row in facts["bits"][1:]} == {"ring-8"}
    assert facts["bits"][0]["bits"] > 0


def test_pocket_from_end_to_end(run, tmp_path, least):
    from scripts.pocket.bench import DATA
    from scripts.pocket.bench.scenes import read_scenes

    (tmp_path / "scenes").mkdir()
    for scene in read_scenes(DATA)[:12]:
        Image.fromarray(scene.pixels).save(tmp_path / "scenes" / f"{scene.number}.png")
        (tmp_path / "scenes" / f"{scene.number}.txt").write_text(scene.truth.text)
    code, out, err = run("eval kit --images {tmp}/scenes --out {tmp}/out --quick")
    assert code == 0, err
    assert "WRONG" not in out
    facts = json.loads((tmp_path / "out" / "kit.json").read_text())
    assert facts["model"]["weights"] == "64a77eb5ff6868c4"
    assert facts["checks"][3]["right"]


def test_bits_are_those_of_the_engine(model_file, index_file):
    """Every setting against `likelihood`, one look-up at a time."""
    checkpoint = load_checkpoint(model_file, torch.float32)
    index = load_index(index_file)
    picture = HeldOut(np.random.default_rng(0).integers(0, 64, 36), "a red car")
    measured = Bits(checkpoint, index, LEAST)
    found = measured.of(picture)
    prompt = checkpoint.prompt_encoder.encode("a red car")
    p = model_probabilities(
        checkpoint.janus, prompt.ids, prompt.unconditional, picture.tokens
    ).numpy()
    own = p[np.arange(36), picture.tokens]
    assert found[0] == pytest.approx(bits(own), abs=1e-4)
    for one, value in zip(measured.settings, found[1:], strict=True):
        spec = replace(JANUS_PRO.keys, neighborhood=one.neighborhood)
        options = RetrievalOptions(one.weight, one.temperature, one.neighbours)
        retriever = make_retriever(
            index.rekeyed(spec), checkpoint.model.grid, measured.codebook, options
        )
        truth = retrieve_truth(retriever, picture.tokens, options)
        assert value == pytest.approx(bits(mixed(own, truth, one.weight)), abs=1e-3)


def test_bits_in_any_order_are_those_of_a_mixture(tmp_path):
    """Mixed by hand with λ 1 and weighed afterwards, against the drawing loop's mixture with λ."""
    checkpoint = load_checkpoint(showo_folder(tmp_path / "showo", tiny_showo()), torch.float32)
    model, effort_ = checkpoint.model, replace(LEAST, neighbours=(16,), taus=(1.0,))
    picture = HeldOut(np.random.default_rng(1).integers(0, 64, model.grid.size), "a red car")
    measured = Bits(checkpoint, sign_index(), effort_)
    found = measured.of(picture)
    prompt = checkpoint.prompt_encoder.encode("a red car")
    recipe = Recipe(prompt.ids, prompt.unconditional, Sampling(1.0))
    opened, canvas = open_prompts(model, recipe, model.device), begin(0, model.grid.size)
    canvas.tokens[:] = picture.tokens
    order = np.random.default_rng(0).permutation(model.grid.size)
    for one, value in zip(measured.settings, found[1:], strict=True):
        retriever = measured._retriever(one.neighborhood, one.temperature, one.neighbours)
        options = replace(retriever.options, weight=one.weight)
        layers, each = Layers((retriever.using(options),)), []
        for share in SHARES:
            known = (order < round(share * model.grid.size))[None]
            p = predict(model, opened, recipe, [canvas], known, model.device)
            p = masked_mixture(p, layers, look_up(layers, [canvas], known))
            each.append(of_tokens(p[0], picture.tokens)[~known[0]])
        assert value == pytest.approx(bits(np.concatenate(each)), abs=1e-3)
    assert found[0] != found[1]


def test_the_variants_change_one_value_at_a_time():
    best = Setting("causal-4", 0.1, 64, 0.4)
    found = variants(best, QUICK, ("causal-4", "causal-24"))
    assert found["λ 0.9"] == replace(best, weight=0.9)
    assert found["λ 0.1, τ 1.0"] == replace(best, weight=0.1, temperature=1.0)
    assert found["λ 0.1, K 16"] == replace(best, weight=0.1, neighbours=16)
    assert found["λ 0.1, keys causal-24"] == replace(best, weight=0.1, neighborhood="causal-24")
    assert next(iter(found)) == "the model alone"
    assert len(found) == 6


def test_the_best_values_become_an_entry_of_the_table(model_file):
    checkpoint = load_checkpoint(model_file, torch.float32)
    best = {"neighborhood": "causal-4", "temperature": 0.3, "neighbours": 64, "weight": 0.2}
    found = recommend(checkpoint, [{"bits": 9.0}, best | {"bits": 8.0}])
    assert found.retrieval == RetrievalOptions(0.2, 0.3, 64)
    assert found.keys.neighborhood == "causal-4"
    assert recommend(checkpoint, [{"bits": 9.0}, best | {"bits": 9.0}]) is None
    for one in (found, POCKET):
        facts = json.loads(json.dumps(to_facts(one)))
        assert from_facts(facts) == one
    names = {
        "Recommended": Recommended,
        "Sampling": Sampling,
        "KeySpec": KeySpec,
        "RetrievalOptions": RetrievalOptions,
        "Schedule": Schedule,
    }
    table = eval("{" + entry("abc", to_facts(found)) + "}", names)
    assert table == {"abc": found}


def test_checks_find_wrong_files(model_file):
    checkpoint = load_checkpoint(model_file, torch.float32)
    assert look(np.full(36, 3)).right is False
    assert look(np.arange(36)).right is True
    encoder = checkpoint.prompt_encoder
    encoder.vocab_size = 102_400
    check = text_ids(checkpoint)
    assert check.right is False
    assert f"they should be {', '.join(map(str, JANUS_IDS))}" in check.detail
    assert SPOKEN in check.detail


@pytest.mark.parametrize(
    ("name", "device", "dtypes"),
    [
        ("auto", "mps", ("bf16", "fp32")),
        ("auto", "cuda", ("bf16", "int8", "fp8", "fp32")),
        ("int8", "cpu", ("int8",)),
    ],
)
def test_dtypes_are_those_that_the_device_draws_in(name, device, dtypes, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert eval_kit.chosen_dtypes(name, torch.device(device)) == dtypes


def test_what_does_not_run_says_why():
    def load(dtype):
        raise RuntimeError("CUDA out of memory.\nmore")

    rows = pace.measure_pace(load, ["fp8"], "a", LEAST, Journal(), no_progress)
    assert rows == [{"dtype": "fp8", "batch": 1, "window": 1, "failed": "CUDA out of memory."}]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--images {files}/no-pictures", "has 0 readable pictures"),
        ("--images {files}/none", "there is no folder"),
        ("--images {files}/pictures --model {files}/none", "none"),
    ],
)
def test_wrong_flags_are_one_sentence(run, flags, message, least):
    line = "eval kit --model {model} --dtype fp32 --out {tmp}/out --quick"
    code, out, err = run(f"{line} {flags}")
    assert (code, out) == (2, "")
    assert re.search(message, err), err


def test_layers_of_the_kit_keep_the_recommended_rest(model_file, index_file):
    from arrag_engine.evaluate.kit.settings import layer_of

    checkpoint, index = load_checkpoint(model_file, torch.float32), load_index(index_file)
    layer = layer_of(checkpoint, index, Setting("causal-4", 0.3, 9, 0.2))
    assert isinstance(layer, Layer)
    assert layer.keys.spec(index.spec, JANUS_PRO.keys) == replace(
        JANUS_PRO.keys, neighborhood="causal-4"
    )
    assert (layer.weight, layer.temperature, layer.neighbours) == (0.2, 0.3, 9)
