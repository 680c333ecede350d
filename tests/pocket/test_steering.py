"""What is measured of steering: halves, styles, copies, and the record that goes on."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import steering
import torch
from steering import Record, background_shown, copying, middle_mask

import arrag_engine as arrag
from arrag_engine.grid import Grid
from arrag_engine.index import KeySpec, create_index
from scripts import bench_steering
from scripts.pocket.backgrounds import paint
from scripts.pocket.bench import DATA
from scripts.pocket.bench.prompts import BenchPrompt, Wanted
from scripts.pocket.bench.scenes import BenchScene, read_scenes
from scripts.pocket.bench.scorer import Detection
from scripts.pocket.halves import background_of, box_of, half_picture, on_sides, true_halves
from tests.tiny import tiny_source

BOX = (8, 24, 56, 72)


@pytest.fixture
def picture():
    """A red thing on a blue background."""
    pixels = np.full((96, 96, 3), (0, 0, 200), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = (200, 0, 0)
    return pixels


def test_a_thing_is_found_on_a_plain_background_alone(picture):
    background = background_of(picture)
    assert background.tolist() == [0, 0, 200]
    assert box_of(picture, background) == BOX
    assert box_of(np.zeros_like(picture), np.zeros(3)) is None
    picture[:50, 0] = 255
    assert background_of(picture) is None
    assert half_picture(picture, "left") is None


@pytest.mark.parametrize(("side", "columns"), [("left", (8, 40)), ("right", (56, 88))])
def test_a_half_has_the_thing_smaller_on_its_side(picture, side, columns):
    half = np.asarray(half_picture(picture, side))
    background = background_of(half)
    assert background.tolist() == [0, 0, 200]
    assert box_of(half, background) == (columns[0], 32, columns[1], 64)


def test_true_halves_stand_beside_each_other(picture):
    other = picture.copy()
    other[other == 200] = 100
    scenes = [
        BenchScene(pixels, "unseen", BenchPrompt("concept", name, (Wanted(name),)), (BOX,))
        for pixels, name in ((picture, "guitar"), (other, "owl"))
    ]
    (first, *names), (second, *swapped) = true_halves(scenes)
    assert names == ["guitar", "owl"]
    assert swapped == ["owl", "guitar"]
    assert first[40, 24].tolist() == [200, 0, 0]
    assert first[40, 72].tolist() == [100, 0, 0]
    assert np.array_equal(second[:, :48], np.asarray(half_picture(other, "left"))[:, :48])


def test_each_thing_counts_on_its_own_side():
    owl = Detection("owl", None, "fluent", 0.3, 0.5, 1)
    guitar = replace(owl, name="guitar", x=0.6)
    assert on_sides([owl, guitar], "owl", "guitar") == (True, True)
    assert on_sides([owl, guitar], "guitar", "owl") == (False, False)
    assert on_sides([guitar], "owl", "guitar") == (False, True)


def test_a_scenery_is_known_by_the_border():
    pixels = (255 * paint("beach")).astype(np.uint8)
    pixels[middle_mask() == 1] = 0
    assert background_shown(pixels) == "beach"


def test_background_is_told_from_the_thing_in_the_score():
    grid = Grid(3, 4)
    source = np.array([1, 1, 1, 1, 1, 2, 3, 1, 1, 4, 5, 1])  # four of twelve are no background
    tokens, codebook = source[None].astype(np.uint16), np.eye(6, 8, dtype=np.float32)
    spec = KeySpec("causal-4", "zero", "codebook")
    index = create_index(grid, tokens, None, codebook, [tiny_source(0)], spec)
    score, background, thing = copying(index, source, np.array([0]), 3)
    assert score == 1
    assert background == pytest.approx(8 / 12)
    assert thing == pytest.approx(4 / 12)
    assert copying(index, source[::-1].copy() + 10, np.array([0]), 3) == (0, 0, 0)


def test_a_record_measures_what_it_lacks(tmp_path):
    record = Record(tmp_path / "rows.json")
    record.once("a/b/one", lambda: {"x": [1, 0]})
    again = Record(record.path)
    again.once("a/b/one", lambda: pytest.fail("it is there"))
    again.once("a/b/two", lambda: {"x": [0, 0]})
    again.once("a/c/one", lambda: {"x": [1, 1]})
    assert Record(record.path).under("a/") == {
        "b": [{"x": [1, 0]}, {"x": [0, 0]}],
        "c": [{"x": [1, 1]}],
    }
    assert steering.share_table(again, "a/", ["x"]).splitlines()[2:] == [
        "| b | 0.250 ±0.354 |",
        "| c | 1.000 ±0.000 |",
    ]


@pytest.fixture
def few_pictures():
    """The shipped index with a guitar and an owl on plain backgrounds, one picture of a scenery and
    one of the second style."""
    index = arrag.load_index("pocket")
    wanted = ("unseen/*a-guitar-on-a-gray*", "unseen/*an-owl-on-an-orange*")
    every = [*wanted, "known/*-on-the-grass*", "style/*"]
    chosen = [int(index.sources.any_of([pattern])[0]) for pattern in every]
    sources = [index.sources[number] for number in chosen]
    tokens, vectors = index.tokens[chosen], index.vectors[chosen]
    return create_index(index.grid, tokens, vectors, index.codebook, sources, index.spec)


def test_everything_is_measured_at_a_tiny_size(tmp_path, monkeypatch, capsys, few_pictures):
    scenes = [scene for scene in read_scenes(DATA) if scene.split == "unseen"][:3]
    monkeypatch.setattr(steering.arrag, "load_index", lambda name: few_pictures)
    monkeypatch.setattr(steering, "read_scenes", lambda folder: scenes)
    monkeypatch.setattr(steering, "LIMITS", (8,))
    monkeypatch.setattr(steering, "SUBJECT_SHARES", (0.9,))
    out = tmp_path / "steering.json"
    line = ["steering.py", "--out", str(out), "--work", str(tmp_path), "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", [*line, "--limit", "1"])
    steering.main()
    rows = json.loads(out.read_text())
    kinds = {key.partition("/")[0] for key in rows}
    assert kinds == {"judge", "regions", "flat style", "scenery", "copies"}
    assert rows["judge/true halves"]["true"]["own side"] == 1
    assert rows["copies/0/guitar"]["subject"] == [True]
    assert "| copy limit | recognised |" in capsys.readouterr().out
    written = out.stat().st_mtime_ns
    steering.main()
    assert out.stat().st_mtime_ns == written


def test_time_is_measured_for_the_same_pictures(tmp_path, monkeypatch, capsys, few_pictures):
    index = replace(few_pictures, sources=renamed(few_pictures.sources))
    monkeypatch.setattr(bench_steering.arrag, "load_index", lambda name: index)
    monkeypatch.setattr(bench_steering, "subject_variants", lambda index: ({"none": []}, {}))
    out = tmp_path / "speed.json"
    line = ["bench_steering.py", "layers", "--seeds", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", line)
    bench_steering.main()
    rows = json.loads(out.read_text())
    assert set(rows) == {"whole index", "one subject"}
    assert all(len(row["seconds"]) == 1 for group in rows.values() for row in group.values())
    assert "| two layers with masks, a half each |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="b draws another picture"):
        bench_steering.check_same({"a": drawn(0), "b": drawn(1)})


def test_a_look_up_is_measured_by_share_of_the_pictures(tmp_path, monkeypatch, capsys):
    out = tmp_path / "speed.json"
    line = ["bench_steering.py", "filter", "--pictures", "20", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", line)
    bench_steering.main()
    rows = json.loads(out.read_text())["filter"]
    assert list(rows) == ["1", "0.1", "0.5", "0.9"]
    assert all(len(row["seconds"]) == 18 for row in rows.values())
    assert "| 0.5 | " in capsys.readouterr().out


def renamed(sources):
    """The guitar becomes a flamingo."""
    named = [replace(s, caption=s.caption.replace("guitar", "flamingo")) for s in sources]
    return type(sources).from_sources(named)


def drawn(token):
    tokens = torch.full((1, 2, 2), token)
    return SimpleNamespace(tokens=tokens)
