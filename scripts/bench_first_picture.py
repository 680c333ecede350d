"""Time to the first picture, new processes: the command line, ComfyUI, ComfyUI alone.

    python -m scripts.bench_first_picture [--rounds 5]

By turns: `python -m arrag_engine generate` with retrieval, from its start to its end; the same
picture from a ComfyUI that is started for it, from the start of the process to the end of the run;
that ComfyUI without this extension, from the start to its first answer, and the picture a second
time. Prints medians; nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.comfyui import ROOT, Server, find_comfyui, mount
from scripts.comfyui_client import Client, node_of
from scripts.draw import SAMPLER, WORKFLOW, device_options

FLAMINGO = (
    *("--prompt", "a flamingo", "--index", "pocket", "--only", "flamingo"),
    *("--neighborhood", "causal-24", "--weight", "0.9", "--retrieval-temperature", "0.2"),
    *("--neighbours", "16", "--cfg", "1", "--temperature", "0.3", "--seed", "7"),
)
"""The settings of WORKFLOW as flags."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    comfyui = find_comfyui()
    if comfyui is None:
        sys.exit("no ComfyUI was found; set COMFYUI_DIR or run `run.py draw` once")
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(-1, rounds):  # the first one fills the disk cache
            for label, seconds in one_round(comfyui, Path(folder)):
                if number >= 0:
                    taken.setdefault(label, []).append(seconds)
    print(f"{rounds} rounds\n| first picture | median seconds (min-max) |\n|---|---|")
    for label, seconds in taken.items():
        spread = f"{min(seconds):.1f}-{max(seconds):.1f}"
        print(f"| {label} | {statistics.median(seconds):.1f} ({spread}) |")


def one_round(comfyui: Path, folder: Path) -> Iterator[tuple[str, float]]:
    """(label, seconds) of everything, once."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "arrag_engine", "generate", *FLAMINGO]
    command += ["--out", str(folder / "flamingo.png")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    yield "command line", time.perf_counter() - start

    bare = folder / "bare"
    (bare / "custom_nodes").mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with Server(comfyui, bare, options=device_options()):
        yield "ComfyUI without the extension, no picture", time.perf_counter() - start

    ours = folder / "ours"
    mount(ours)
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    start = time.perf_counter()
    with Server(comfyui, ours, options=device_options()) as server, Client(server.url) as client:
        assert not client.run(workflow).error
        yield "ComfyUI with its start", time.perf_counter() - start
        workflow[node_of(workflow, SAMPLER)]["inputs"]["seed"] += 1
        start = time.perf_counter()
        assert not client.run(workflow).error
        yield "ComfyUI, the second picture", time.perf_counter() - start


if __name__ == "__main__":
    main()
