"""The scripts that measure large indexes, at sizes that take seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.plot_scale import PATCHES, fitted, on_cluster

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="they read /proc")


def run(*command):
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_structures_are_measured_against_faiss(tmp_path):
    small = ("--patches", 3000, "--codes", 256, "--queries", 16)
    run("scripts/bench_scale.py", *small, "--folder", tmp_path, "--out", tmp_path / "a.json")
    rows = json.loads((tmp_path / "a.json").read_text())
    names = [row["search"].split(",")[0].split(" ")[0] for row in rows]
    assert names == ["ivf", *["faiss"] * 4, "compact", *["faiss"] * 4, "compact"]
    assert all(row["recall"] > 0.5 for row in rows if "recall" in row)
    assert rows[0]["ms_to_first"] == 1
    assert rows[-1]["codes_ms"] > 0 < rows[-1]["ids_only_ms"]


def test_growth_is_measured_and_goes_on_by_arithmetic(tmp_path):
    sizes = ("--millions", 0.005, 0.5, "--codes", 256, "--queries", 16)
    run("scripts/simulate_scale.py", *sizes, "--folder", tmp_path, "--out", tmp_path / "a.json")
    grown = json.loads((tmp_path / "a.json").read_text())
    assert [row["patches"] for row in grown["as built"]] == [5060, 499_928]
    assert [row["lists"] for row in grown["long"]] == [69]
    files = [tmp_path / f"compact-{name}.safetensors" for name in ("0.005", "0.5")]
    assert [row["bytes"] for row in grown["as built"]] == [file.stat().st_size for file in files]
    model = fitted(grown)
    assert model.bytes == pytest.approx(files[1].stat().st_size / 499_928)


def test_the_arithmetic_reproduces_what_was_measured():
    grown = json.loads((ROOT / "docs/measured/scale.json").read_text("utf-8"))["grown"]
    model = fitted(grown)
    for row in grown["as built"]:
        assert model.query(row["patches"]) == pytest.approx(row["ms"], rel=0.5)
        assert model.building(row["patches"]) * 3600 == pytest.approx(row["build_seconds"], rel=0.6)
    two, four = (on_cluster(model, machines) for machines in (2, 4))
    assert two["GB of files a machine"] == pytest.approx(2 * four["GB of files a machine"])
    assert two["GB of memory a machine"] * 2e9 == 4 * PATCHES
