"""Results of the official scorers, in the shape in which these write them."""

import json
import re

import numpy as np
import pytest

from arrag_engine.errors import InputError
from arrag_engine.evaluate.quoted import DPG, GENEVAL, QUOTED
from arrag_engine.evaluate.results import (
    GENEVAL_PROMPTS,
    read_dpg_results,
    read_geneval_results,
)


def geneval_lines(verdicts):
    """A line for each (tag, prompt, sample, correct), as pandas writes them."""
    return "".join(
        json.dumps(
            {
                "filename": f"out/daid/{prompt:05}/samples/{sample:04}.png",
                "tag": tag,
                "prompt": f"a photo of {prompt}",
                "correct": correct,
                "reason": "" if correct else "expected bench>=1, found 0\nelse",
                "metadata": json.dumps({"tag": tag, "prompt": f"a photo of {prompt}"}),
                "details": "{}",
            }
        ).replace("/", "\\/")
        + "\n"
        for tag, prompt, sample, correct in verdicts
    )


def whole_geneval(rng):
    prompt = 0
    for tag, count in GENEVAL_PROMPTS.items():
        for _ in range(count):
            for sample in range(4):
                yield tag, prompt, sample, bool(rng.random() < 0.6)
            prompt += 1


def test_geneval_is_counted_as_its_summary_does(tmp_path):
    verdicts = list(whole_geneval(np.random.default_rng(0)))
    np.random.default_rng(1).shuffle(verdicts)  # the scorer lists folders in any order
    verdicts = [(str(t), int(p), int(s), c == "True" or c is True) for t, p, s, c in verdicts]
    path = tmp_path / "results.jsonl"
    path.write_text(geneval_lines(verdicts))
    found = read_geneval_results(path)
    assert found.missing == ()
    assert set(found.categories) == set(GENEVAL)
    for tag, score in found.categories.items():
        mine = [(sample, correct) for t, _, sample, correct in verdicts if t == tag]
        assert score.mean == pytest.approx(np.mean([correct for _, correct in mine]))
        each = [np.mean([c for s, c in mine if s == sample]) for sample in range(4)]
        assert score.spread == pytest.approx(np.std(each, ddof=1))
    means = [score.mean for score in found.categories.values()]
    assert found.overall.mean == pytest.approx(np.mean(means))
    assert found.overall.spread > 0


def test_geneval_says_what_is_missing(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(
        geneval_lines(
            [
                *[("colors", 1, 0, True), ("colors", 1, 1, False), ("colors", 2, 0, True)],
                ("own", 3, 0, True),
            ]
        )
    )
    found = read_geneval_results(path)
    assert "category counting is missing" in found.missing
    assert "colors has 2 of 94 prompts" in found.missing
    assert "prompts have 1 to 2 pictures" in found.missing
    assert "category own is none of GenEval's" in found.missing
    assert found.categories["own"].spread is None
    assert found.overall.spread is None


DPG_TEXT = """out/daid/0.png, 1.0, 0.5, 0.75, 1.0, 0.8125
out/da, id/partiprompts150.png, 0.5, 0.0, 0.25, 1.0, 0.4375
Model: daid
L1 category scores:
\tentity: 84.46
\tattribute: 84.76
\tglobal: 83.58
\trelation: 91.49
L2 category scores:
\tattribute - color: 91.5
\tentity - whole: 88.0
Image path: out/daid
Save results to: r.txt
DPG-Bench score: 62.5
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_dpg_is_read_with_its_spread(tmp_path, end):
    (tmp_path / "r.txt").write_bytes(DPG_TEXT.replace("\n", end).encode())
    found = read_dpg_results(tmp_path / "r.txt")
    assert {n: s.mean for n, s in found.categories.items()} == {
        **{"entity": 84.46, "attribute": 84.76, "global": 83.58, "relation": 91.49}
    }
    assert found.also == {"attribute - color": 91.5, "entity - whole": 88.0}
    assert found.overall.mean == 62.5
    assert found.overall.spread == pytest.approx(100 * np.std([0.75, 0.25, 0.5, 1.0], ddof=1))
    assert found.missing == ("category other is missing", "2 of 1065 prompts are scored")


def test_dpg_without_its_summary_has_the_mean_of_the_pictures(tmp_path):
    (tmp_path / "r.txt").write_text(DPG_TEXT.split("Model:")[0])
    found = read_dpg_results(tmp_path / "r.txt")
    assert found.overall.mean == pytest.approx(62.5)
    assert "the summary is missing" in found.missing[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no results; give the --outfile"),
        ("{", "line 1 of .* is no result of GenEval"),
        ('{"tag": "colors", "correct": true}', "line 1 of .* is no result"),
        ('{"tag": "colors", "filename": "x", "correct": true}', "line 1 of .*no tag, picture"),
        ('{"tag": 3, "filename": "0.png", "correct": true}', "no tag, picture"),
        ('{"tag": "colors", "filename": "0.png", "correct": 1}', "no tag, picture"),
    ],
)
def test_other_texts_are_refused(tmp_path, text, message):
    (tmp_path / "r").write_text(text)
    with pytest.raises(InputError, match=message):
        read_geneval_results(tmp_path / "r")
    with pytest.raises(InputError, match="holds no results; give the --res-path"):
        read_dpg_results(tmp_path / "r")


def test_quoted_figures_are_those_of_their_source():
    """The mean over the categories that a source prints is the overall score that it prints."""
    for one in QUOTED:
        if one.geneval:
            assert len(one.geneval) == len(GENEVAL)
            assert np.mean(one.geneval) == pytest.approx(one.geneval_overall, abs=0.01)
        assert len(one.dpg) in (0, len(DPG))


def report_row(out, name):
    [line] = [line for line in out.splitlines() if line.startswith(name)]
    return re.split(r"  +", line.strip())


def test_the_report_prints_ours_beside_the_quoted(run, tmp_path):
    verdicts = list(whole_geneval(np.random.default_rng(0)))
    (tmp_path / "results.jsonl").write_text(geneval_lines(verdicts))
    (tmp_path / "r.txt").write_text(DPG_TEXT)
    line = "eval report --geneval daid={tmp}/results.jsonl {tmp}/results.jsonl"
    code, out, err = run(f"{line} --dpg mine={{tmp}}/r.txt --json {{tmp}}/report.json")
    assert code == 0, err
    assert re.fullmatch(r"0\.\d{3} ±0\.\d{3}", report_row(out, "daid")[-1])
    assert report_row(out, "daid")[1:] == report_row(out, "results")[1:]
    assert report_row(out, "mine  ")[1:6] == ["83.58", "84.46", "84.76", "91.49", "-"]
    assert "mine is incomplete: category other is missing; 2 of 1065 prompts are scored." in out
    quoted = [line for line in out.splitlines() if line.startswith("quoted [2] DAiD")]
    assert quoted[0].split()[3:] == ["0.98", "0.82", "0.54", "0.87", "0.63", "0.49", "0.72"]
    assert quoted[1].split()[-1] == "77.88"
    assert "[1] paper, arXiv 2506.06962v3" in out
    assert "were not measured here" in out
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["dpg"]["mine"]["overall"]["mean"] == 62.5


def test_the_report_measures_distances(run, tmp_path, files):
    rng = np.random.default_rng(0)
    for name in ("real", "daid", "plain"):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(20, 4)))
    line = "--fid {tmp}/real.npy {tmp}/daid.npy P={tmp}/plain.npy --cmmd {tmp}/real.npy"
    code, out, err = run(f"eval report {line} {{tmp}}/daid.npy")
    assert code == 0, err
    assert report_row(out, "distance") == ["distance (lower is nearer)", "FID", "CMMD"]
    assert report_row(out, "P ")[2] == "-"
    assert "quoted [2] FAiD: FID Midjourney-30K 9.31" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "there is nothing to report"),
        ("--geneval {tmp}/none", "there is no file or folder"),
        ("--fid {files}/pictures", "--fid has one path; pass the reference"),
        ("--fid {files}/pictures {files}/pictures", "pass its file with --inception"),
        ("--cmmd {files}/pictures {files}/pictures", "pass its file with --clip"),
        ("--fwd {files}/pictures {files}/index.safetensors", "FWD needs folders of pictures"),
    ],
)
def test_wrong_flags_are_one_sentence(run, flags, message):
    code, out, err = run(f"eval report {flags}")
    assert (code, out) == (2, "")
    assert re.search(message, err), err
