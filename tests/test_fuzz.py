"""The targets of `scripts/fuzz.py`: each takes its sound files, and damage ends in `InputError`."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="the fuzzer limits memory by a call of Unix systems")

from arrag_engine.errors import InputError
from scripts import fuzz
from scripts.fuzz_mutate import changed, joined, mutated, split
from scripts.fuzz_targets import TARGETS, Target, check

SLOW = ("index", "checkpoint", "folder", "adapter", "showo")
"""Targets that load what they read: some milliseconds each."""
ROOT = Path(__file__).parents[1]


@pytest.fixture(params=TARGETS)
def name(request):
    return request.param


@pytest.fixture
def seeds(tmp_path, name):
    made = tmp_path / "seeds"
    made.mkdir()
    return list(TARGETS[name].seeds(made))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "files"
    made.mkdir()
    return made


def test_every_target_has_a_name_on_the_command_line():
    assert set(fuzz.NAMES) == set(TARGETS)


def test_sound_files_pass_whole(name, seeds, folder):
    for data in seeds:
        TARGETS[name].run(data, folder)


def test_damaged_files_end_in_a_sentence(name, seeds, folder, pytestconfig):
    count = pytestconfig.getoption("mutations") * (1 if name in SLOW else 2)
    rng, refused = random.Random(0), 0
    for number in range(count):
        data = fuzz.damaged(rng.choice(seeds), rng)
        error = check(TARGETS[name], data, folder)
        assert error is None, (number, error)
        try:
            TARGETS[name].run(data, folder) if number < 20 else None
        except InputError:
            refused += 1
    assert refused


def test_damage_reaches_behind_the_header(tmp_path):
    """Most of what is damaged is still a file whose header is sound."""
    [data, *_] = TARGETS["index"].seeds(tmp_path)
    rng, sound = random.Random(0), 0
    for _ in range(200):
        try:
            header, body = split(mutated(data, rng))
        except ValueError:
            continue
        ends = [e["data_offsets"][1] for n, e in header.items() if _placed(n, e)]
        sound += bool(ends) and max(ends) == len(body)
    assert sound > 100


def _placed(name, entry):
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return name != "__metadata__" and isinstance(offsets, list) and type(offsets[-1]) is int


def test_the_same_seed_damages_the_same_way():
    data = joined({"__metadata__": {"a": "[1]"}}, b"abcd")
    assert [mutated(data, random.Random(i)) for i in range(50)] == [
        mutated(data, random.Random(i)) for i in range(50)
    ]


def test_texts_that_are_json_are_damaged_as_json():
    tables = [changed({"a": '{"b": 1}'}, random.Random(i)) for i in range(200)]
    texts = [table["a"] for table in tables if isinstance(table, dict) and "a" in table]
    assert sum(isinstance(text, str) and text[:1] == "{" for text in texts) > 50


@pytest.mark.parametrize("kind", [KeyError, BaseException, MemoryError, AssertionError])
def test_every_other_ending_is_a_find(tmp_path, kind):
    def run(data, folder):
        raise kind("a")

    assert type(check(Target(run, lambda folder: iter(())), b"", tmp_path)) is kind


def worker(tmp_path, source):
    """(its ending, executions) of a worker that runs some Python."""
    count = tmp_path / "count"
    counter = fuzz.Counter(count)
    code = "import sys; from pathlib import Path; from scripts import fuzz\n"
    code += "c = fuzz.Counter(Path(sys.argv[1]))\n" + source
    process = subprocess.Popen([sys.executable, "-c", code, str(count)], cwd=ROOT)
    return fuzz.watch(process, counter, 60), counter[0]


def test_how_a_worker_ends_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "HANG", 1.0)
    assert worker(tmp_path, "c.add(0)") == ("", 1)
    assert worker(tmp_path, "c.add(0); raise SystemExit(3)") == ("exit3", 2)
    assert worker(tmp_path, "import os; os.kill(os.getpid(), 11)") == ("exit-11", 2)
    assert worker(tmp_path, "c.add(0)\nwhile True: pass") == ("hang", 3)


def test_the_script_fuzzes_without_atheris(tmp_path):
    line = f"json --seconds 1 --seed 1 --plain --corpus {tmp_path / 'corpus'}"
    run = subprocess.run(
        [sys.executable, "-m", "scripts.fuzz", *line.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("json: ")
    assert run.stdout.rstrip().endswith(" a second), 0 finds")
    assert len(list((tmp_path / "corpus" / "json").iterdir())) == 2
