"""Commands for an index after it was built."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from arrag_engine import shipped
from arrag_engine.cli import indexes
from arrag_engine.index import (
    Source,
    SourceTable,
    create_index,
    load_index,
    merge_indexes,
    save_index,
    save_shards,
)
from tests.tiny import tiny_index, tiny_source


@pytest.fixture
def own(tmp_path, files):
    """An index that may be changed."""
    return shutil.copy(files / "index.safetensors", tmp_path / "own.safetensors")


def save_pictures(folder, *seeds):
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        noise = np.random.default_rng(seed).integers(0, 256, (15, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{seed}.png")
    return folder


def test_inspect_tells_what_an_index_holds(run, tmp_path, index):
    code, out, err = run("inspect {files}/index.safetensors --sheet {tmp}/sheet.png")
    facts = dict(line.split(None, 1) for line in out.splitlines() if "  " in line)
    assert (code, err) == (0, "")
    assert (facts["kind"], facts["images"], facts["patches"]) == ("patch index", "5", "100")
    assert (facts["structure"], facts["recall"]) == ("flat", "1.000")
    assert facts["licences"] == "CC0 (5)"
    assert (facts["neighborhood"], facts["key_space"]) == ("causal-4", "encoder")
    assert len(facts["fingerprint"]) == 64
    assert out.splitlines()[-1] == str(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert len(sheet.convert("RGB").getcolors(1 << 16)) > len(index.sources)


def test_inspect_prints_nothing_that_a_terminal_obeys(run, tmp_path, index):
    sources = SourceTable.from_sources(
        tiny_source(i) if i else Source("\x1b[31m\n", "", 1, 1, "", "\x07", b"") for i in range(5)
    )
    odd = create_index(index.grid, index.tokens, index.vectors, index.codebook, sources)
    save_index(odd, tmp_path / "odd.safetensors")
    _, out, _ = run("inspect {tmp}/odd.safetensors")
    assert "first sources    ?[31m?, 1.png" in out
    assert not set(out) & {"\x1b", "\x07"}


def test_pictures_are_added_once(run, own, tmp_path, index):
    save_pictures(tmp_path / "pictures", 1, 2)
    (tmp_path / "pictures" / "1.txt").write_text("a red car")
    line = "add {own} --images {tmp}/pictures --model {model} --licence MIT --source here"
    code, out, err = run(line, own=own)
    assert (code, err) == (0, "")
    assert out == f"{own}: 7 pictures, 140 patches, flat search, recall 1.000\n"
    grown = load_index(own)
    assert list(grown.sources[:5]) == list(index.sources)
    added = grown.sources[5]
    facts = (added.name, added.caption, added.licence, added.origin)
    assert facts == ("1.png", "a red car", "MIT", "here")


def test_adding_nothing_new_is_no_error_and_changes_nothing(run, own, tmp_path):
    save_pictures(tmp_path / "pictures", 1, 2)
    line = "add {own} --images {tmp}/pictures --model {model}"
    assert run(line, own=own)[0] == 0
    before, state = own.read_bytes(), own.stat()
    code, out, err = run(line, own=own)
    sentence = f"{own} has all 2 readable pictures of {tmp_path / 'pictures'} already"
    assert (code, out) == (0, f"{sentence}\n")
    assert "skipped 1.png: the same file as 1.png" in err
    assert (own.read_bytes(), own.stat().st_ino) == (before, state.st_ino)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own.safetensors", "pictures"]
    code, out, _ = run(f"{line} --out {{tmp}}/copy.safetensors", own=own)
    assert (code, out.splitlines()[0]) == (0, sentence)
    assert (tmp_path / "copy.safetensors").read_bytes() == before


def test_what_is_added_equals_what_is_built_at_once(run, tmp_path):
    """One index built of all pictures, the other of one and then of all."""
    build = "build --model {model} --images {tmp}/pictures --out {tmp}/"
    save_pictures(tmp_path / "pictures", 1)
    assert run(build + "grown.safetensors")[0] == 0
    save_pictures(tmp_path / "pictures", 2, 3)
    assert run(build + "whole.safetensors")[0] == 0
    assert run("add {tmp}/grown.safetensors --model {model} --images {tmp}/pictures")[0] == 0
    one, other = (tmp_path / f"{name}.safetensors" for name in ("grown", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_the_original_stays_when_another_file_is_named(run, own, tmp_path, files):
    code, out, _ = run("remove {own} --caption *3 --out {tmp}/less.safetensors", own=own)
    less = tmp_path / "less.safetensors"
    assert code == 0
    assert out.splitlines() == [
        "1 of 5 pictures go",
        f"{less}: 4 pictures, 80 patches, flat search, recall 1.000",
    ]
    assert own.read_bytes() == (files / "index.safetensors").read_bytes()
    assert [s.name for s in load_index(less).sources] == ["0.png", "1.png", "2.png", "4.png"]


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        ("--source 1.png", [0, 2, 3, 4]),
        ("--source example.org/2", [0, 1, 3, 4]),
        ("--caption picture?[34]", [0, 1, 2]),
        ("--caption 1 --source 4.png", [0, 2, 3]),
        ("--licence unknown --source 0.png", [1, 2, 3, 4]),
    ],
)
def test_pictures_are_removed_by_pattern(run, own, flags, left):
    assert run(f"remove {{own}} {flags}", own=own)[0] == 0
    assert [s.name for s in load_index(own).sources] == [f"{i}.png" for i in left]


def test_a_file_that_another_program_changes_meanwhile_keeps_its_change(
    run, own, files, monkeypatch
):
    def meanwhile(index, path):
        shutil.copy(files / "other-vq.safetensors", own)
        save_index(index, path)

    monkeypatch.setattr(indexes, "save_index", meanwhile)
    code, _, err = run("remove {own} --source 1.png", own=own)
    assert code == 2
    assert f"{own} was changed by another program meanwhile" in err
    assert own.read_bytes() == (files / "other-vq.safetensors").read_bytes()
    assert list(own.parent.iterdir()) == [own]


def test_indexes_are_merged(run, tmp_path, model):
    for seed in (0, 1):
        save_index(tiny_index(model, 3, seed), tmp_path / f"{seed}.safetensors")
    line = "merge {tmp}/0.safetensors {tmp}/1.safetensors {tmp}/0.safetensors"
    line += " --out {tmp}/m.safetensors --structure ivf --recall-target 0.9"
    code, out, _ = run(line)
    assert code == 0
    assert out.startswith(f"{tmp_path / 'm.safetensors'}: 6 pictures, 120 patches, ivf search")
    merged = load_index(tmp_path / "m.safetensors")
    assert merged.searcher.kind == "ivf"
    assert merged.recall >= 0.9


def test_a_shipped_index_can_be_merged_but_not_changed(run, tmp_path, monkeypatch, files):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    shutil.copy(files / "index.safetensors", shelf / "small.safetensors")
    monkeypatch.setattr(shipped, "INDEXES", shelf)
    assert run("merge small --out {tmp}/m.safetensors")[0] == 0
    code, _, err = run("remove small --source 1.png")
    assert code == 2
    assert "small is part of the program and cannot be changed; pass an --out file" in err
    assert run("remove small --source 1.png --out {tmp}/m.safetensors")[0] == 0
    assert len(load_index(tmp_path / "m.safetensors").tokens) == 4


def test_sources_are_a_table_that_computes_nothing(run, tmp_path, index):
    names = ["=1+1", "+1", "-1", "@SUM(A1)", 'a "b", c\n']
    sources = SourceTable.from_sources(
        replace(s, name=name) for name, s in zip(names, index.sources, strict=True)
    )
    odd = create_index(index.grid, index.tokens, index.vectors, index.codebook, sources)
    save_index(odd, tmp_path / "odd.safetensors")
    code, out, _ = run("export-sources {tmp}/odd.safetensors --out {tmp}/sources.csv")
    assert (code, out) == (0, f"{tmp_path / 'sources.csv'}: 5 rows\n")
    with (tmp_path / "sources.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["'=1+1", "'+1", "'-1", "'@SUM(A1)", 'a "b", c\n']
    last = rows[4]
    assert (last["number"], last["caption"], last["licence"]) == ("4", "picture 4", "CC0")
    assert (last["origin"], last["sha256"]) == ("https://example.org/4", index.sources[4].sha256)
    assert [last[side] for side in ("width", "height")] == ["12", "16"]
    assert [last[side] for side in ("left", "top", "right", "bottom")] == ["0", "2", "12", "14"]


def test_check_says_every_finding_and_whether_all_is_well(run, own):
    code, out, err = run("check {own}", own=own)
    assert (code, err) == (0, "")
    assert {line.split()[0] for line in out.splitlines()} == {"ok"}
    data = bytearray(own.read_bytes())
    data[-1] ^= 1
    own.write_bytes(data)
    code, out, err = run("check {own}", own=own)
    assert code == 2
    failed = [line for line in out.splitlines() if line.startswith("FAILED")]
    assert [line.split(":")[0] for line in failed] == [
        "FAILED hash of sources.thumbnails",
        "FAILED thumbnails",
    ]
    assert err.startswith(f"error: {own} is damaged (hash of sources.thumbnails, ")


def test_only_matching_pictures_are_looked_up_while_drawing(run, tmp_path):
    line = "generate --model {model} --dtype fp32 --prompt red --index {files}/index.safetensors"
    line += " --out {tmp}/a.png --json {tmp}/a.json --weight 1 --only"
    assert run(f"{line} picture?[12]")[0] == 0
    report = json.loads((tmp_path / "a.json").read_text())
    places = [p["layers"][0]["nearest"] for p in report["images"][0]["positions"] if "layers" in p]
    assert {place["source"] for place in places} == {"1.png", "2.png"}
    assert report["settings"]["only"] == "picture?[12]"
    code, _, err = run(f"{line} cat")
    assert code == 2
    assert "no caption, name or origin of the 5 pictures in the index matches 'cat'" in err


def test_patches_are_found_by_the_keys_asked_for(run, tmp_path):
    line = "generate --model {model} --prompt red --index {files}/index.safetensors --weight 1 "
    line += "--only= --out {tmp}/a.png --json {tmp}/a.json"

    def report():
        return json.loads((tmp_path / "a.json").read_text())

    assert run(line)[0] == 0
    built = report()
    assert built["settings"]["keys_neighborhood"] == "causal-4"
    assert "layers" not in built["images"][0]["positions"][1]
    flags = "--neighborhood causal-12 --borders zero --key-space codebook --position-weight 2"
    assert run(f"{line} {flags}")[0] == 0
    told = report()
    keys = {k: v for k, v in told["settings"].items() if k.startswith("keys_")}
    assert list(keys.values()) == ["causal-12", "zero", "codebook", 2.0]
    assert "layers" in told["images"][0]["positions"][1]
    assert told["images"][0]["tokens"] != built["images"][0]["tokens"]
    code, _, err = run(f"{line} --neighborhood ring-8")
    assert code == 2
    assert "needs tokens that this model draws later" in err


REFUSED = {
    "add to another VQ": (
        "add {files}/other-vq.safetensors --images {files}/pictures --model {model}",
        "the index was built with another VQ",
    ),
    "add to another grid": (
        "add {files}/other-grid.safetensors --images {files}/pictures --model {model}",
        "the index was built for a 5x6 grid, the model draws 6x6",
    ),
    "add from nowhere": ("add {own} --images {tmp}/none --model {model}", "there is no folder"),
    "add nothing": (
        "add {own} --images {files}/no-pictures --model {model}",
        "holds no readable picture",
    ),
    "remove nothing named": ("remove {own}", "pass --source, --licence or --caption"),
    "remove an empty pattern": (
        "remove {own} --source=",
        "--source is empty; pass a value",
    ),
    "remove what is not there": ("remove {own} --caption cat", "none of the 5 pictures of"),
    "remove everything": ("remove {own} --licence cc0", "that would remove all 5 pictures"),
    "merge another VQ": (
        "merge {own} {files}/other-vq.safetensors --out {tmp}/m.safetensors",
        "own.safetensors and {files}/other-vq.safetensors cannot be merged: they were built with",
    ),
    "merge another grid": (
        "merge {own} {files}/other-grid.safetensors --out {tmp}/m.safetensors",
        "other-grid.safetensors cannot be merged: one has a 6x6 grid, the other 5x6",
    ),
    "merge a cut file": (
        "merge {own} {files}/cut-index.safetensors --out {tmp}/m.safetensors",
        "not a readable .safetensors file",
    ),
    "merge into nowhere": ("merge {own} --out {tmp}/no/m.safetensors", "there is no folder"),
    "unreachable recall": (
        "remove {own} --source 1.png --structure ivf --recall-target 1",
        "a recall target of 1 needs exact search, which ivf is not; choose flat or auto",
    ),
    "a structure that keys cannot have": (
        "remove {own} --source 1.png --structure compact",
        "needs keys of the codebook key space",
    ),
    "export a model": ("export-sources {model} --out {tmp}/s.csv", "is not a patch index"),
    "export no csv": ("export-sources {own} --out {tmp}/s.txt", "must end in .csv"),
    "check a cut file": ("check {files}/cut-index.safetensors", "not a readable"),
    "check nothing": ("check {tmp}/none", "is neither a file or folder nor a shipped name"),
    "sheet of a model": ("inspect {model} --sheet {tmp}/s.png", "is not an index"),
    "sheet no png": ("inspect {own} --sheet {tmp}/s.jpg", "must end in .png"),
}


@pytest.mark.parametrize(("line", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_one_sentence_and_changes_nothing(
    run, own, tmp_path, files, line, message
):
    before = own.read_bytes()
    code, _, err = run(line, own=own)
    assert code == 2
    assert message.format(files=files) in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [own]
    assert own.read_bytes() == before


@pytest.fixture
def shards(tmp_path, model):
    """The manifest of an index in two shards."""
    save_shards(tmp_path / "shards.json", (tiny_index(model, 3, seed) for seed in (1, 2)))
    return tmp_path / "shards.json"


def test_an_index_in_shards_draws_like_one_file(run, shards, tmp_path, model):
    whole = merge_indexes([tiny_index(model, 3, seed) for seed in (1, 2)], ["a", "b"])
    save_index(whole, tmp_path / "whole.safetensors")
    reports = []
    for name in ("whole.safetensors", "shards.json"):
        line = "generate --model {model} --prompt picture --seed 3 --out {tmp}/a.png"
        line += " --only * --weight 0.5 --json {tmp}/a.json --index {tmp}/" + name
        code, _, err = run(line)
        assert code == 0, err
        reports.append(json.loads((tmp_path / "a.json").read_text()))
    assert reports[0]["images"][0]["tokens"] == reports[1]["images"][0]["tokens"]
    assert reports[0]["images"][0]["positions"] == reports[1]["images"][0]["positions"]
    assert reports[0]["notes"] == reports[1]["notes"]


def test_shards_are_inspected_and_checked(run, shards):
    code, out, _ = run("inspect {tmp}/shards.json")
    facts = dict(line.split(None, 1) for line in out.splitlines() if "  " in line)
    assert code == 0
    assert (facts["kind"], facts["shards"], facts["images"]) == ("patch index in shards", "2", "6")
    assert facts["licences"] == "CC0 (6)"
    code, out, _ = run("check {tmp}/shards.json")
    assert code == 0
    assert out.count("ok     fingerprint") == 2
    assert "shards-00001.safetensors" in out
    file = shards.with_name("shards-00001.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    code, _, err = run("check {tmp}/shards.json")
    assert code != 0
    assert "is damaged (hash of " in err


@pytest.mark.parametrize(
    "line", ["add {s} --images {files}/pictures --model {model}", "remove {s} --source a"]
)
def test_shards_are_not_edited(run, shards, line):
    code, _, err = run(f"{line} --out {{tmp}}/o.safetensors", s=shards)
    assert code != 0
    assert "is the manifest of an index in shards, which is for drawing only" in err
