"""The benchmark of search structures, at a size that takes seconds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_structures_are_measured_side_by_side(tmp_path):
    command = "scripts/bench_index.py --patches 3000 --codes 256 --queries 16 --folder"
    done = subprocess.run(
        [sys.executable, *command.split(), str(tmp_path), "--structures", "flat", "compact"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"^ *(\S.*?)  +(flat: .*)$", done.stdout, re.MULTILINE))

    def numbers(row):
        return [float(n) for n in re.findall(r": ([\d.]+)", rows[row].replace(",", ""))]

    assert numbers("patches") == [3036] * 2
    assert numbers("recall at 64, queries held out")[0] == 1
    assert all(0.5 < n <= 1 for n in numbers("recall at 64, queries held out"))
    flat, compact = numbers("bytes a patch, file")
    assert compact < flat
    assert (tmp_path / "compact.safetensors").stat().st_size / 3036 == pytest.approx(
        compact, abs=0.01
    )
    assert all(n > 0 for n in numbers("ms a query"))
