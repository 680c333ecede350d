"""What a trace costs beside the drawing it tells of, with `pocket` on one thread, in CPU seconds.

python -m scripts.bench_trace --seeds 8
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch

import arrag_engine as arrag

CASES = {
    "subject of the prompt, recommended": {},
    "whole index, weight 0.5": {"only": "", "weight": 0.5},
    "whole index, weight 0.1": {"only": "", "weight": 0.1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--prompt", default="a flamingo")
    a = parser.parse_args()
    torch.set_num_threads(1)
    model, index = arrag.load_model("pocket"), arrag.load_index("pocket")
    for name, chosen in CASES.items():
        layer = arrag.Layer(index, **chosen)
        _seconds(model, a.prompt, layer, 0)
        rows = [_seconds(model, a.prompt, layer, seed) for seed in range(a.seeds)]
        draw, trace, save = (statistics.median(column) for column in zip(*rows, strict=True))
        shares = f"{trace / draw:.1%}, with its file {(trace + save) / draw:.1%}"
        print(f"{name}: drawing {draw:.3f} s, trace {trace:.4f} s, file {save:.4f} s: {shares}")


def _seconds(model, prompt: str, layer: arrag.Layer, seed: int) -> tuple[float, ...]:
    """CPU seconds of the drawing, its trace and the trace's file."""
    times = [time.process_time()]
    drawing = arrag.draw(model, prompt, seeds=[seed], layers=[layer])
    times.append(time.process_time())
    trace = drawing.traces[0]
    times.append(time.process_time())
    with tempfile.TemporaryDirectory() as folder:
        arrag.save_trace(trace, Path(folder) / "trace.safetensors")
        times.append(time.process_time())
    return tuple(b - a for a, b in pairwise(times))


if __name__ == "__main__":
    main()
