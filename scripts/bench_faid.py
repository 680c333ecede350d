"""Time of a FAiD step and of its blenders at Janus-Pro-1B's shapes.

    python scripts/bench_faid.py [--folder DIR] [--tokens 16] [--rounds 7] [--threads 2]

On a random bf16 checkpoint (written once, 4 GB) with the two blenders of the published one: a whole
drawing with live retrieval against the same drawing without FAiD, and one folded blender against
its convolutions as they stand in the checkpoint, on the same inputs. By turns, medians of the
ratios; nothing is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.faid import (
    AdapterConfig,
    Faid,
    FaidAdapter,
    FoldedBlender,
    PatchBlender,
    assemble,
)
from arrag_engine.grid import Grid
from arrag_engine.index import SourceTable, create_index
from arrag_engine.models.janus.model import JanusPro
from arrag_engine.models.ops import pack_linears
from arrag_engine.retrieval import Retriever, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling
from scripts.bench_1b import BLANK, PROMPT, write_checkpoint

BLENDERS = AdapterConfig(blender_layers=(0, 12), hops=(1, 2))
K = 10
INDEXED = 200
"""Pictures in the random index."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or is to be written")
    parser.add_argument("--tokens", type=int, default=16, help="a square number")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    folder = a.folder or Path(tempfile.gettempdir()) / "arrag-janus-1b"
    if not (folder / "config.json").is_file():
        write_checkpoint(folder)
    model = load_checkpoint(folder, torch.bfloat16).janus
    side = round(a.tokens**0.5)
    model.config = replace(model.config, grid=Grid(side, side))
    retriever = random_retriever(model)
    pack_linears(model)
    adapter, weights = random_adapter(model)
    print(f"bf16, {a.threads} threads, {a.rounds} rounds")
    with torch.inference_mode():
        compare_blenders(adapter, weights, a.rounds)
        del weights
        compare_steps(model, Faid(adapter, candidates=K), retriever, a.rounds)


def random_adapter(model: JanusPro) -> tuple[FaidAdapter, PatchBlender]:
    """Folded for drawing, and one of its blenders as a checkpoint has it."""
    torch.manual_seed(0)
    whole = FaidAdapter(model.config, BLENDERS).requires_grad_(False)
    state = {
        name: (torch.randn(t.shape) * 0.02).bfloat16() for name, t in whole.state_dict().items()
    }
    started = time.perf_counter()
    adapter = assemble(model.config, BLENDERS, lambda name: state[name], torch.bfloat16)
    print(f"folding both blenders: {time.perf_counter() - started:.1f} s")
    resident = sum(t.numel() * t.element_size() for t in adapter.state_dict().values())
    stored = sum(t.numel() * t.element_size() for t in state.values())
    print(f"blender weights: {resident / 2**20:.0f} MiB folded, {stored / 2**20:.0f} MiB stored")
    pack_linears(adapter)
    blender = whole.by_layer[0].blender
    assert isinstance(blender, PatchBlender)
    prefix = "layers.0.blender."
    own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    blender.load_state_dict(own, assign=True)
    return adapter, blender


def as_written(blender: PatchBlender, around: Tensor, centres: Tensor) -> Tensor:
    """f [K, hidden] through the convolutions: a 3x3 and a 5x5 window for every candidate.

    Args:
        around: [12, hidden] drawn before, the offsets in raster order.
        centres: [K, hidden].
    """
    window = around.new_zeros(len(centres), 25, around.shape[1])
    window[:, :12] = around
    window[:, 12] = centres
    window = window.view(len(centres), 5, 5, -1).permute(0, 3, 1, 2).contiguous()  # [K, D, 5, 5]
    outs = []
    for hop, part in ((1, window[:, :, 1:4, 1:4]), (2, window)):
        for name in (f"conv{hop}", f"conv{hop}2"):
            part = blender.get_submodule(name)(part)
        outs.append(part[:, :, 0, 0])
    one, two = torch.softmax(blender.conv_weights, 0)
    u = one * outs[0] + two * outs[1]
    inner, outer = blender.mlp[0], blender.mlp[2]
    assert isinstance(inner, nn.Linear)
    assert isinstance(outer, nn.Linear)
    hidden = F.relu(F.linear(u, inner.weight, inner.bias))
    return torch.sigmoid(F.linear(hidden, outer.weight, outer.bias)) * u


def compare_blenders(adapter: FaidAdapter, whole: PatchBlender, rounds: int) -> None:
    folded = adapter.by_layer[0].blender
    assert isinstance(folded, FoldedBlender)
    hidden = whole.hidden
    around, centres = torch.randn(12, hidden).bfloat16(), torch.randn(K, hidden).bfloat16()
    slow, fast = (
        as_written(whole, around, centres),
        folded(around.flatten()[None], centres[None])[0],
    )
    error = (slow.float() - fast.float()).abs().max() / slow.float().abs().max()
    print(f"largest difference of their outputs: {error:.4f} of the largest output (bf16)")
    by_turns(
        ("folded ms", lambda: folded(around.flatten()[None], centres[None])),
        ("as written ms", lambda: as_written(whole, around, centres)),
        rounds,
        "one blender at one position, as written / folded",
        inverse=True,
    )


def compare_steps(model: JanusPro, faid: Faid, retriever: Retriever, rounds: int) -> None:
    def drawing(*used: Any) -> Callable[[], object]:
        return lambda: draw_pictures(model, Recipe(PROMPT, BLANK, Sampling(), *used), [0])

    by_turns(
        ("FAiD ms", drawing([retriever], faid)),
        ("plain ms", drawing()),
        rounds,
        f"a drawing of {model.config.grid.size} tokens, guidance, batch 1, FAiD / plain",
    )


def by_turns(
    one: tuple[str, Callable[[], object]],
    other: tuple[str, Callable[[], object]],
    rounds: int,
    title: str,
    inverse: bool = False,
) -> None:
    """Run both by turns and print their times and the ratio of each pair."""
    times: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for mine, (_, run) in zip(times, (one, other), strict=True):
            started = time.perf_counter()
            run()
            mine.append((time.perf_counter() - started) * 1000)
    a, b = (t[1:] for t in times)  # the first round warms up
    ratios = [y / x if inverse else x / y for x, y in zip(a, b, strict=True)]
    print(f"{title}:")
    for name, values in ((one[0], a), (other[0], b), ("ratio", ratios)):
        low, high = min(values), max(values)
        print(f"  {name:<14} median {statistics.median(values):.3f}  min {low:.3f}  max {high:.3f}")


def random_retriever(model: JanusPro) -> Retriever:
    """An index of random pictures with weight 0: only the adapter receives its patches."""
    rng, grid = np.random.default_rng(0), model.config.grid
    codebook = model.vq.codebook(torch.device("cpu"))
    tokens = rng.integers(0, len(codebook), (INDEXED, grid.size)).astype(np.uint16)
    sources = SourceTable.unknown(INDEXED)
    index = create_index(grid, tokens, codebook[tokens], codebook, sources)
    return make_retriever(index, grid, codebook, RetrievalOptions(weight=0))


if __name__ == "__main__":
    main()
