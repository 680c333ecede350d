"""`eval` from the command line."""

import json
import re
import subprocess
import sys

import pytest

from arrag_engine.cli import evaluate
from scripts.pocket.bench.settings import EVERY_KIND


def test_a_short_run_scores_every_kind(run, tmp_path):
    line = "eval pocket --methods plain,daid,control --seeds 1 --limit 1 --out {tmp}/out"
    code, out, err = run(line)
    assert code == 0, err
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert {(s["kind"], s["method"]) for s in scores} == {
        (kind, method) for kind in EVERY_KIND for method in ("plain", "daid", "control")
    }
    assert all(len(s["right"]) == 1 and 0 <= s["right"][0] <= 1 for s in scores)
    assert all((s["copied"] is None) == (s["method"] == "plain") for s in scores)
    assert (tmp_path / "out" / "table.txt").read_text() == out
    for kind in EVERY_KIND:
        assert (tmp_path / "out" / f"{kind}-daid.png").exists()
    again = run("eval pocket --methods plain --kinds single_object --seeds 1 --limit 1")[1]
    assert [line for line in out.splitlines() if line.startswith("single_object  plain")] == [
        line for line in again.splitlines() if line.startswith("single_object  plain")
    ]


def test_the_first_seed_says_which_pictures_are_drawn(run, tmp_path):
    line = "eval pocket --methods plain --kinds counting --limit 2 --out {tmp}/"

    def right(folder, flags):
        assert run(f"{line}{folder} {flags}")[0] == 0
        return json.loads((tmp_path / folder / "scores.json").read_text())[0]["objects"]

    both = right("both", "--seeds 3")
    assert right("last", "--seeds 2 --first-seed 1") == both[1:]


def test_a_run_of_the_suite_goes_on(run, tmp_path, monkeypatch):
    """Every piece is kept; a second command with more methods draws these alone."""
    from arrag_engine.evaluate import run as driver
    from scripts.pocket.bench import bits

    line = "eval pocket --kinds concept --limit 1 --seeds 2 --out {tmp}/out --methods"
    assert run(f"{line} plain")[0] == 0
    drawn, measured = [], []
    draw_tokens, with_method = driver.draw_tokens, bits.with_method
    monkeypatch.setattr(driver, "draw_tokens", lambda *a: drawn.append(a) or draw_tokens(*a))
    monkeypatch.setattr(bits, "with_method", lambda *a: measured.append(a[1]) or with_method(*a))
    code, out, err = run(f"{line} plain,daid")
    assert code == 0, err
    assert len(drawn) == 1
    assert measured == ["daid"] * 3
    assert "Drawn without a caption: concept (by plain, daid)." in out
    assert "95% interval over prompts and seeds" in out
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [score["caption_given"] for score in scores] == [False, False]
    assert all(
        score["right_interval"][0] <= score["right"][0] <= score["right_interval"][1]
        for score in scores
    )
    code, _, err = run(f"{line} plain --seeds 3")
    assert (code, "was begun with seeds '2', this command has '3'" in err) == (2, True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--methods magic", "choose some of plain, daid"),
        ("--kinds nothing", "choose some of single_object"),
        ("--kinds ,", "--kinds is empty; choose some of"),
        ("--methods plain,magic,plan", "--methods is magic, plan; choose some of plain, daid"),
        ("--seeds 0", "--seeds is 0; choose 1 to 10000"),
        ("--first-seed -1", "--first-seed is -1; choose 0 to"),
        ("--limit 0", "--limit is 0; choose 1 to"),
        ("--adapter pocket", "--adapter needs the method faid; add faid to --methods, or omit"),
        ("--scorer {tmp}/none.safetensors", "there is no file"),
        ("--index {files}/index.safetensors", "another grid|6x6 grid"),
    ],
)
def test_wrong_flags_are_one_sentence(run, flags, message):
    code, out, err = run(f"eval pocket {flags}")
    assert code == 2
    assert not out
    assert re.search(message, err), err
    assert "Traceback" not in err


def test_every_phase_reports_its_progress(run, monkeypatch):
    """From 0 to all, one phase after the other."""
    seen = []

    class Recorded(evaluate.Bars):
        def __call__(self, unit, done, total, note=""):
            seen.append((unit, done, total))
            super().__call__(unit, done, total, note)

    monkeypatch.setattr(evaluate, "Bars", Recorded)
    line = "eval pocket --methods plain,daid --kinds single_object,colors --seeds 1 --limit 1"
    assert run(line)[0] == 0
    phases = list(dict.fromkeys(unit for unit, _, _ in seen))
    assert phases == [
        *("scene decoded", "real scene judged", "reconstructed scene judged"),
        *("likelihood of a scene", "prompt", "Fréchet distance"),
    ]
    for phase, work in zip(phases, (3, 3, 3, 3 * 2, 2 * 2, 2), strict=True):
        done = [d for unit, d, _ in seen if unit == phase]
        assert done == sorted(done)
        assert done[-1] == work
        assert {total for unit, _, total in seen if unit == phase} == {work}


@pytest.mark.parametrize("module", ["scripts.nowhere.bench", "nowhere.at.all"])
@pytest.mark.parametrize("flags", ["", "--seeds 1 --kinds colors", "--help"])
def test_a_suite_that_is_not_here_is_one_sentence(run, monkeypatch, module, flags):
    monkeypatch.setitem(evaluate.SUITES, "pocket", module)
    code, out, err = run(f"eval pocket {flags}")
    assert (code, out) == (2, "")
    folder = module.rpartition(".")[0].replace(".", "/")
    assert err == (
        f"error: the suite pocket lies in {folder} of the repository, which is not installed; run "
        "`python -m arrag_engine eval pocket` in a clone of the repository\n"
    )


def test_what_a_suite_lacks_is_no_missing_suite(monkeypatch, tmp_path):
    (tmp_path / "needy.py").write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(evaluate.SUITES, "pocket", "needy")
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
        evaluate.load_suite("pocket")


def test_suites_are_found_from_any_folder(tmp_path):
    program = (
        "import sys\n"
        f"sys.path.insert(0, {str(evaluate.REPOSITORY)!r})\n"
        "from arrag_engine.cli import main\n"
        "sys.path.pop(0)\n"
        "main(['eval', 'pocket', '--help'])\n"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "--scorer" in ended.stdout
