"""A build in parts makes what one process makes, byte for byte, and loses no part."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from arrag_engine.build import (
    BuildOptions,
    ReadSettings,
    build_in_parts,
    build_index,
    building,
    parts,
)
from arrag_engine.errors import InputError
from arrag_engine.index import KeySpec, load_index, open_lookup, read_manifest, save_shards
from tests.index.test_lookup import parts_of
from tests.pictures import picture

COUNT = 21


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures; the same file in several parts, a broken and a wide one among them."""
    place = tmp_path_factory.mktemp("pictures")
    for i in range(COUNT - 4):
        picture(place / f"{i:02}.png", i, (40 if i == 6 else 20, 15))
    shutil.copyfile(place / "03.png", place / "03b.png")
    shutil.copyfile(place / "06.png", place / "15b.png")
    shutil.copyfile(place / "02.png", place / "16b.png")
    (place / "10b.png").write_bytes(b"broken")
    (place / "05.txt").write_text("five")
    (place / "16b.txt").write_text("two again")
    return place


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of 8 pictures, which makes three."""
    for module in ("parts", "building"):
        monkeypatch.setattr(f"arrag_engine.build.{module}.PICTURES", 8)


OPTIONS = [
    BuildOptions(),
    BuildOptions(read=ReadSettings("CC0", crops="cover")),
    BuildOptions(KeySpec("causal-4", "zero", "codebook")),
]


@pytest.mark.parametrize("options", OPTIONS, ids=["center", "cover", "codebook"])
def test_parts_become_the_file_of_one_process(model, model_file, folder, tmp_path, options):
    out, whole = tmp_path / "a.safetensors", tmp_path / "whole.safetensors"
    built = build_index(model, folder, whole, options)
    told = []
    report = build_in_parts(
        model, model_file, folder, out, options, progress=lambda *now: told.append(now)
    )
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(report.duplicates) == sorted(built.report.duplicates)
    assert (report.pictures, report.captioned) == (built.report.pictures, built.report.captioned)
    assert (report.unreadable, report.notes) == (built.report.unreadable, built.report.notes)
    pictures = list(dict.fromkeys(now for now in told if now[0] == "picture"))
    assert pictures == [("picture", n, COUNT) for n in (8, 16, 21)]
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "whole.safetensors"]


def test_a_part_that_is_written_is_not_made_again(model, model_file, folder, tmp_path, monkeypatch):
    whole = tmp_path / "whole.safetensors"
    build_index(model, folder, whole)
    out, made = tmp_path / "a.safetensors", []

    def killed(function, calls, gpu):
        yield from (function(*one) for one in calls[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_in_parts(model, model_file, folder, out, run=killed)
    assert not out.exists()
    cut = tmp_path / ".a.safetensors.parts" / "part-000001.safetensors"
    cut.write_bytes(cut.read_bytes()[:100])  # as no atomic writing leaves it
    write = parts.write_part
    monkeypatch.setattr(parts, "write_part", lambda p, e: (made.append(p.path.name), write(p, e)))
    said = []
    build_in_parts(model, model_file, folder, out, say=said.append)
    assert made == ["part-000001.safetensors", "part-000002.safetensors"]
    assert said == ["going on after 8 pictures that an earlier build has done"]
    assert out.read_bytes() == whole.read_bytes()


def test_parts_of_other_settings_are_made_again(model, model_file, folder, tmp_path):
    out = tmp_path / "a.safetensors"

    def killed(function, calls, gpu):
        yield from (function(*one) for one in calls)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_in_parts(model, model_file, folder, out, run=killed)
    said = []
    options = BuildOptions(read=ReadSettings("CC0"))
    build_in_parts(model, model_file, folder, out, options, say=said.append)
    assert said == []
    assert load_index(out).sources[0].licence == "CC0"


@pytest.mark.parametrize(("pictures", "shards"), [(1, 3), (8, 3), (9, 2), (100, 1)])
def test_shards_hold_what_one_file_holds(model, model_file, folder, tmp_path, pictures, shards):
    whole, out = tmp_path / "whole.safetensors", tmp_path / "a.json"
    build_index(model, folder, whole)
    report = build_in_parts(model, model_file, folder, out, shard_pictures=pictures)
    index, sharded = load_index(whole), open_lookup(out)
    assert len(sharded.manifest.shards) == shards
    assert report.pictures == len(sharded.tokens) == len(index.tokens)
    assert list(sharded.sources) == list(index.sources)
    queries = index.searcher.reconstruct(np.arange(5))
    for one, other in zip(
        sharded.lookup(queries, 30).fields, index.lookup(queries, 30).fields, strict=True
    ):
        assert np.array_equal(one, other)
    assert len(os.listdir(tmp_path)) == shards + 2


def test_a_shard_that_is_written_is_not_made_again(
    model, model_file, folder, tmp_path, monkeypatch
):
    out, made = tmp_path / "a.json", []
    save = parts.save_index
    monkeypatch.setattr(parts, "save_index", lambda i, p: (made.append(p.name), save(i, p)))

    def killed(unit, done, total):
        if (unit, done) == ("shard", 2):
            raise KeyboardInterrupt

    def build(shard_pictures=8, **more):
        build_in_parts(model, model_file, folder, out, shard_pictures=shard_pictures, **more)

    with pytest.raises(KeyboardInterrupt):
        build(progress=killed)
    assert not out.exists()
    with pytest.raises(KeyboardInterrupt):
        build(16, progress=killed)
    assert len(made) == 4
    build()
    assert len(made) == 5
    assert sorted(made[:2] + made[4:]) == [s.file for s in read_manifest(out).shards]
    assert len(list(tmp_path.glob("a*"))) == 4


def test_an_index_is_as_it_was_until_another_one_is_complete(
    model, model_file, folder, tmp_path, monkeypatch
):
    out = tmp_path / "a.json"

    def build(shard_pictures):
        return build_in_parts(model, model_file, folder, out, shard_pictures=shard_pictures)

    def stuck(source, target):
        if target.name.endswith("-00001.safetensors"):
            raise InputError("in use")
        move(source, target)

    build(8)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("a*")}
    move = building.move_file
    monkeypatch.setattr(building, "move_file", stuck)
    with pytest.raises(InputError, match="in use"):
        build(16)
    open_lookup(out)
    assert before.items() <= {path.name: path.read_bytes() for path in tmp_path.glob("a*")}.items()
    monkeypatch.setattr(building, "move_file", move)
    monkeypatch.setattr(parts, "save_index", lambda *_: pytest.fail("a shard is made again"))
    said = build(16).notes
    assert len(read_manifest(out).shards) == 2
    assert sum("is no shard of a.json now, and was left where it is" in one for one in said) == 3
    assert list(open_lookup(out).sources)


def test_a_build_in_parts_by_command(run, files, tmp_path):
    line = "build --model {model} --images {files}/pictures --out {tmp}/a.json --shard-pictures 1"
    code, out, err = run(line)
    assert (code, err) == (0, "")
    assert "3 pictures, 0 with captions" in out
    assert "1 shards, " in out
    assert len(json.loads((tmp_path / "a.json").read_text())["shards"]) == 1
    code, _, err = run(line.replace("a.json", "b.safetensors"))
    assert code != 0
    assert "b.safetensors must end in .json" in err


def test_without_pictures_nothing_is_written(model, model_file, tmp_path):
    (tmp_path / "none").mkdir()
    for name, pictures in (("a.safetensors", 0), ("a.json", 8)):
        with pytest.raises(InputError, match="holds no readable picture"):
            build_in_parts(
                model, model_file, tmp_path / "none", tmp_path / name, shard_pictures=pictures
            )
        assert not (tmp_path / name).exists()


KILLED = """
    import os, random, signal, sys, threading
    import torch
    from pathlib import Path
    from arrag_engine.build import build_in_parts, building, parts
    from tests.tiny import tiny_model

    torch.set_num_threads(1)
    parts.PICTURES = building.PICTURES = 8
    checkpoint, folder, out = map(Path, sys.argv[1:4])
    shard_pictures, seed = map(int, sys.argv[4:])
    rng = random.Random(seed)
    calls, delay, count = rng.randint(0, 5), rng.uniform(0, 0.02), 0

    def die(unit, done, total):
        global count
        count += 1
        if count > calls:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    build_in_parts(
        tiny_model(), checkpoint, folder, out, shard_pictures=shard_pictures, progress=die
    )
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
@pytest.mark.parametrize("shard_pictures", [0, 8], ids=["one file", "shards"])
def test_killed_builds_in_parts_go_on_to_the_same_files(
    model, model_file, folder, tmp_path, shard_pictures
):
    name = "a.json" if shard_pictures else "a.safetensors"
    for place in ("whole", "killed"):
        (tmp_path / place).mkdir()
    whole, out = tmp_path / "whole" / name, tmp_path / "killed" / name
    build_in_parts(model, model_file, folder, whole, shard_pictures=shard_pictures)
    for seed in range(4):
        command = [sys.executable, "-c", textwrap.dedent(KILLED), model_file, folder, out]
        ended = subprocess.run(
            [*map(str, command), str(shard_pictures), str(seed)],
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == -9, ended.stderr.decode()
    build_in_parts(model, model_file, folder, out, shard_pictures=shard_pictures)
    wanted = {path.name: path.read_bytes() for path in whole.parent.iterdir() if path.is_file()}
    found = {path.name: path.read_bytes() for path in out.parent.iterdir() if path.is_file()}
    assert wanted == found


NEEDS_ONE_FILE = {
    "add": "add {tmp}/a.json --model {model} --images {files}/pictures --out {tmp}/b.safetensors",
    "remove": "remove {tmp}/a.json --source a --out {tmp}/b.safetensors",
    "merge": "merge {tmp}/a.json {tmp}/a.json --out {tmp}/b.safetensors",
    "calibrate": "calibrate --model {model} --index {tmp}/a.json --images {files}/pictures "
    "--out {tmp}/b.safetensors",
    "train": "train faid --model {model} --index {tmp}/a.json --images {files}/pictures "
    "--work {tmp}/b --out {tmp}/b.safetensors",
    "eval pocket": "eval pocket --model {model} --index {tmp}/a.json --out {tmp}/b",
}


@pytest.mark.parametrize("name", NEEDS_ONE_FILE)
def test_what_needs_one_file_refuses_shards(run, index, tmp_path, name):
    save_shards(tmp_path / "a.json", parts_of(index, (0, 1, len(index.tokens))))
    before = sorted(tmp_path.iterdir())
    code, _, err = run(NEEDS_ONE_FILE[name])
    assert code == 2
    assert "a.json is the manifest of an index in shards, which is for drawing only" in err
    assert sorted(tmp_path.iterdir()) == before
