"""`eval sweep`: the points, their table and their plot."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from arrag_engine.evaluate.plot import line_chart

FLAGS = "--model {model} --dtype fp32 --index {files}/index.safetensors --only= --out {tmp}/out"


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "p.txt").write_text("a car\na red car\n")
    return f"prompts --prompts {tmp_path}/p.txt --seeds 2"


def row(out, first):
    [line] = [line for line in out.splitlines() if re.match(rf"{first}(  |$)", line)]
    return line.split()


def test_every_combination_is_a_row_and_a_folder(run, prompts, tmp_path):
    vary = "--vary weight=0,1 --vary retrieval-temperature=0.01,1"
    code, out, err = run(f"eval sweep {prompts} {vary} {FLAGS}")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["weight", "retrieval-temperature", "copied", "variety"]
    assert len(lines) == 6
    assert (tmp_path / "out" / "sweep.txt").read_text() == "\n".join(lines[:5]) + "\n"
    facts = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [(f["weight"], f["retrieval-temperature"]) for f in facts] == [
        *((0.0, 0.01), (0.0, 1.0), (1.0, 0.01), (1.0, 1.0))
    ]
    folder = tmp_path / "out" / "weight=1,retrieval-temperature=0.01"
    assert len(list((folder / "daid").glob("*.png"))) == 4
    alone = [(tmp_path / "out" / f"weight=0,retrieval-temperature={t}" / "daid") for t in (0.01, 1)]
    first, second = ([p.read_bytes() for p in sorted(one.iterdir())] for one in alone)
    assert first == second  # λ 0 is the model alone, whatever τ is
    chart = ET.parse(tmp_path / "out" / "sweep.svg").getroot()
    lines = [one for one in chart.iter() if one.tag.endswith("polyline")]
    assert [len(one.get("points").split()) for one in lines] == [4, 4]


def test_a_sweep_goes_on_and_takes_up_the_scores(run, tmp_path):
    record = {"tag": "colors", "include": [], "prompt": "a red car"}
    (tmp_path / "m.jsonl").write_text(json.dumps(record))
    line = f"eval sweep geneval --prompts {{tmp}}/m.jsonl --seeds 1 --weight 0.5 {FLAGS}"
    line += " --vary neighborhood=causal-4,causal-8 --vary neighbours=2 --vary top-k=3"
    code, out, err = run(line)
    assert code == 0, err
    assert "No point is scored yet: let the scorer write results.jsonl" in out
    place = tmp_path / "out" / "neighborhood=causal-4,neighbours=2,top-k=3"
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*.png")}
    verdict = {"filename": "a/0000.png", "tag": "colors", "correct": True, "prompt": "a red car"}
    (place / "results.jsonl").write_text(json.dumps(verdict))
    code, out, err = run(line)
    assert code == 0, err
    assert row(out, "causal-4")[3] == "1"
    assert row(out, "causal-8")[3] == "-"
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*.png")} == before


def test_the_pocket_suite_is_swept(run, tmp_path):
    line = "eval sweep pocket --kinds concept --limit 1 --seeds 2 --out {tmp}/out"
    code, out, err = run(f"{line} --vary weight=0,0.9 --vary neighborhood=causal-8")
    assert code == 0, err
    assert out.split()[:5] == ["weight", "neighborhood", "score", "copied", "variety"]
    assert row(out, "0")[2] == "0"
    assert float(row(out, "0.9")[3]) > float(row(out, "0")[3])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--vary speed=1", "--vary is 'speed'; choose one of weight"),
        ("--vary weight=2", "--vary weight is 2.0; choose 0 to 1"),
        ("--vary weight=", "--vary weight is ''; choose 0 to 1"),
        ("--vary neighbours=1.5", "--vary neighbours is '1.5'; choose 1 to"),
        ("--vary neighborhood=all", "--vary neighborhood is 'all'; choose one of"),
        ("--vary weight=0 --vary weight=1", "--vary weight is passed twice"),
        (f"--vary neighbours={','.join(map(str, range(1, 70)))}", "69 combinations, at most 64"),
        ("--vary weight=0 --methods plain", "a sweep draws one method that retrieves"),
        ("--vary weight=0 --methods daid,control", "a sweep draws one method"),
    ],
)
def test_wrong_flags_are_one_sentence(run, prompts, tmp_path, flags, message):
    code, out, err = run(f"eval sweep {prompts} {FLAGS} {flags}")
    assert (code, out) == (2, "")
    assert re.search(message, err), err
    assert not (tmp_path / "out").exists()


def test_a_chart_survives_hostile_names_and_gaps():
    lines = {"<script>&": [0.5, None, 1.0], "none": [None] * 3}
    chart = ET.fromstring(line_chart(['"a"', "<b>", "c"], lines, "]]>"))
    texts = {one.text for one in chart.iter() if one.tag.endswith("text")}
    assert {'"a"', "<b>", "<script>&", "]]>"} <= texts
    points = [one.get("points") for one in chart.iter() if one.tag.endswith("polyline")]
    assert [len(one.split()) for one in points] == [2, 0]
