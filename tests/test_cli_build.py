"""`build`: what it writes, what it says, how it ends."""

import io
import json
import shutil

import pytest
from PIL import Image
from tqdm import tqdm

from arrag_engine.cli import build, progress
from arrag_engine.index import load_index
from tests.pictures import picture

BUILD = "build --model {model} --images {files}/pictures --out {tmp}/i.safetensors"
OWN = "build --model {model} --images {tmp}/pictures --out {tmp}/i.safetensors"


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    picture(place / "a.png", 0)
    picture(place / "b.png", 1, (40, 12))
    return place


def test_what_was_built_is_said_in_one_line_and_drawn_with(run, tmp_path):
    code, said, err = run(f"{BUILD} --licence CC0 --source somewhere")
    out = tmp_path / "i.safetensors"
    size = out.stat().st_size
    assert (code, err) == (0, "")
    assert said == (
        f"{out}: 3 pictures, 0 with captions, 60 patches, 0 duplicates, 0 unreadable; "
        f"{size} bytes, flat search, recall 1.0\n"
    )
    assert {(s.licence, s.origin) for s in load_index(out).sources} == {("CC0", "somewhere")}
    assert (
        run("generate --model {model} --prompt red --out {tmp}/a.png --index {tmp}/i.safetensors")[
            0
        ]
        == 0
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "i.safetensors"]


def test_the_way_keys_are_made(run, tmp_path):
    line = f"{BUILD} --neighborhood causal-8 --borders zero --key-space codebook"
    assert run(f"{line} --position-weight 0.25 --structure flat --recall-target 0.9")[0] == 0
    index = load_index(tmp_path / "i.safetensors")
    spec = index.spec
    assert (spec.neighborhood, spec.borders, spec.space) == ("causal-8", "zero", "codebook")
    assert (spec.position_weight, index.searcher.kind) == (0.25, "flat")


def test_everything_that_did_not_get_in_is_named(run, folder, tmp_path):
    (folder / "bad.png").write_bytes(b"bad")
    shutil.copyfile(folder / "a.png", folder / "c.png")
    (folder / "metadata.jsonl").write_text(
        json.dumps({"file_name": "b.png", "text": "two"}) + "\n{"
    )
    code, said, err = run(OWN)
    assert code == 0
    assert "2 pictures, 1 with captions, 40 patches, 1 duplicates, 1 unreadable" in said
    assert err.splitlines() == [
        "skipped c.png: the same file as a.png",
        "skipped bad.png: not a readable picture (unknown format)",
        "note: metadata.jsonl line 2: not JSON (Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)); the line is ignored",
    ]
    assert load_index(tmp_path / "i.safetensors").sources[1].caption == "two"


def test_crops_are_counted_apart_from_pictures(run, folder):
    _, said, _ = run(f"{OWN} --crops cover")
    assert ": 2 pictures, 0 with captions, 6 crops, 120 patches" in said


def test_a_stopped_build_goes_on_and_says_so(run, folder, tmp_path, monkeypatch):
    for i in range(10):
        picture(folder / f"{i}.png", i + 5)

    class Stopping(build.Bars):
        def __call__(self, unit, done, total):
            if done > 8:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "Bars", Stopping)
        assert run(OWN) == (1, "", "stopped; the same command continues\n")
    assert not (tmp_path / "i.safetensors").exists()
    _, said, err = run(f"{OWN} --licence CC0")
    assert err.startswith("starting afresh: the list of pictures changed")
    with monkeypatch.context() as patch:
        patch.setattr(build, "Bars", Stopping)
        run(OWN)
    _, said, err = run(OWN)
    assert err == "going on after 8 pictures that an earlier build has done\n"
    assert "12 pictures" in said
    with monkeypatch.context() as patch:
        patch.setattr(build, "Bars", Stopping)
        run(OWN)
        assert run(f"{OWN} --fresh")[2] == ("stopped; the same command without --fresh continues\n")
    assert run(f"{OWN} --fresh")[2] == ""


def test_the_bar_shows_pace_and_time_left_of_what_is_still_to_do(monkeypatch):
    shown = io.StringIO()
    bars = []

    def visible(unit):
        bars.append(tqdm(unit=unit, file=shown, mininterval=0, ascii=True))
        return bars[-1]

    monkeypatch.setattr(progress, "progress_bar", visible)
    with progress.Bars() as count:
        count("picture", 60, 100)
        count("picture", 80, 100)
        bars[0].start_t -= 10  # twenty pictures in ten seconds
        assert bars[0].format_dict["initial"] == 60
        assert "80/100" in str(bars[0])
        count("picture", 100, 100)
        count("patch", 5, 9)
    assert [(bar.unit, bar.n, bar.total) for bar in bars] == [
        ("picture", 100, 100),
        ("patch", 5, 9),
    ]
    assert "picture/s" in shown.getvalue()
    assert "<" in shown.getvalue()  # elapsed<left


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--recall-target 0", "--recall-target is 0.0"),
        ("--recall-target nan", "--recall-target is nan"),
        ("--position-weight -1", "--position-weight is -1.0"),
        ("--position-weight inf", "--position-weight is inf"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_read(run, tmp_path, flags, message):
    code, out, err = run(f"{BUILD} {flags}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--structure tree", "--crops all", "--key-space x"])
def test_choices_are_named(run, flag):
    code, _, err = run(f"{BUILD} {flag}")
    assert code == 2
    assert "choose from" in err


def test_a_folder_of_six_pictures_gives_an_index_of_six(run, tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    for i, name in enumerate(["a.png", "b.PNG", "c.jpg", "d.JPEG", "e.webp", "f.png"]):
        Image.new("RGB", (30 + i, 30), (i, 0, 0)).save(place / name)
    assert ": 6 pictures" in run(OWN)[1]
