"""Things inpainted into scenes: are they recognised, and how well do they join what was kept?

    python -m scripts.pocket.inpaint --out docs/measured/inpaint.json

Scenes of the benchmark with two things lose the first: its cells and those around them are masked,
and a thing of each split is drawn there, `--seeds` times. The detector says whether it is there.
The seam is measured in bits a token under the model alone: of the kept tokens that touch the
mask and come after it in raster order, which are the ones that a drawing in that order cannot see
unless the keys of the index lie on all sides. `as it was` is the scene itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from arrag_engine import load_index, load_model
from arrag_engine.checkpoints import Checkpoint
from arrag_engine.decode import Kept, Recipe, draw_pictures
from arrag_engine.evaluate.benchmark import evenly
from arrag_engine.evaluate.pictures import decode_tokens
from arrag_engine.grid import Grid, offset_table
from arrag_engine.index import KeySpec
from arrag_engine.likelihood import bits, model_probabilities
from arrag_engine.retrieval import layers_of
from arrag_engine.settings import Sampling

from .bench import DATA
from .bench.library import Library
from .bench.scenes import BenchScene, read_scenes
from .bench.scorer import Scorer, load_scorer
from .bench.settings import CONCEPTS, GENERAL, Use
from .bench.tasks import scene_tokens

AROUND = tuple((r, c) for r in (-1, 0, 1) for c in (-1, 0, 1))
RING = KeySpec("ring-8", "zero", "encoder", 2.0)
WAYS: dict[str, dict[str, tuple[Use, str]]] = {
    "seen": {
        "the model alone": (GENERAL, "plain"),
        "causal-8": (replace(GENERAL, spec=KeySpec("causal-8", "zero", "encoder", 2.0)), "daid"),
        "ring-8": (replace(GENERAL, spec=RING), "daid"),
    },
    "unseen": {
        "the model alone": (CONCEPTS, "plain"),
        "causal-24": (CONCEPTS, "daid"),
        "causal-8": (replace(CONCEPTS, spec=KeySpec("causal-8", "zero", "encoder", 2.0)), "daid"),
        "ring-8": (replace(CONCEPTS, spec=RING), "daid"),
    },
}
"""How things are drawn, by the split they belong to: settings and method of the benchmark."""


@dataclass(frozen=True)
class Task:
    """A thing to draw into a scene."""

    tokens: np.ndarray
    """[N] of the scene."""
    wanted: str
    """Name of the thing."""
    text: str
    """The prompt."""
    mask: np.ndarray
    """[N] of what is drawn anew."""
    seam: np.ndarray
    """[N] of the kept tokens that touch the mask and come after it."""


def widened(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """A mask [N] with the cells around it."""
    near = offset_table(grid, AROUND)
    return ((near >= 0) & mask[np.maximum(near, 0)]).any(axis=1)


def seam_of(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """Kept positions [N] of which a masked one lies left, above, or between."""
    before = offset_table(grid, ((-1, -1), (-1, 0), (-1, 1), (0, -1)))
    return ~mask & ((before >= 0) & mask[np.maximum(before, 0)]).any(axis=1)


def make_tasks(
    scenes: Sequence[BenchScene], tokens: np.ndarray, grid: Grid, split: str, limit: int
) -> list[Task]:
    """Scenes of two things, of which the first gives way to a thing of the split."""
    names = list(dict.fromkeys(scene.truth.include[0].name for scene in single(scenes, split)))
    pairs = [
        (scene, mine)
        for scene, mine in zip(scenes, tokens, strict=True)
        if scene.split == "seen" and len(scene.boxes) == 2
    ]
    tasks = []
    for number, (scene, mine) in enumerate(evenly(pairs, limit)):
        there = {entry.name for entry in scene.truth.include}
        name = next(n for n in names[number % len(names) :] + names if n not in there)
        text = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
        one = replace(scene, boxes=scene.boxes[:1]).covers(grid.height, grid.width)
        mask = widened(one, grid)
        tasks.append(Task(mine, name, text, mask, seam_of(mask, grid)))
    return tasks


def single(scenes: Sequence[BenchScene], split: str) -> list[BenchScene]:
    """Scenes of a split with one thing."""
    return [scene for scene in scenes if scene.split == split and len(scene.boxes) == 1]


def measure(
    checkpoint: Checkpoint,
    library: Library,
    scorer: Scorer,
    tasks: Sequence[Task],
    way: tuple[Use, str],
    seeds: Sequence[int],
) -> dict[str, list[float]]:
    """By seed: the share of the pictures whose thing is recognised, and bits a token of the
    seams."""
    right, seams = np.zeros((len(seeds), len(tasks))), np.zeros((len(seeds), len(tasks)))
    use, method = way
    for t, task in enumerate(tasks):
        prompt = checkpoint.prompt_encoder.encode(task.text)
        blank = use.blank and method != "plain"
        drawn_with = checkpoint.prompt_encoder.blank() if blank else prompt
        layers = layers_of(library.retriever(use, method, task.wanted))
        kept = Kept(task.tokens[None], ~task.mask[None])
        ids = drawn_with.ids, drawn_with.unconditional
        recipe = Recipe(*ids, use.sampling, layers, kept=kept)
        drawn = draw_pictures(checkpoint.model, recipe, seeds).tokens.flatten(1).numpy()
        found = scorer.detect(decode_tokens(checkpoint, drawn))
        for s, things in enumerate(found):
            right[s, t] = any(thing.name == task.wanted for thing in things)
            seams[s, t] = seam_bits(checkpoint, drawn[s], task)
    return {"recognised": right.mean(axis=1).tolist(), "seam": seams.mean(axis=1).tolist()}


def seam_bits(checkpoint: Checkpoint, tokens: np.ndarray, task: Task) -> float:
    """Bits a token of the seam under the model alone, without a caption."""
    blank = checkpoint.prompt_encoder.blank()
    p = model_probabilities(
        checkpoint.model, blank.ids, blank.unconditional, tokens, Sampling(cfg=1.0)
    )
    return bits(p[torch.arange(len(tokens)), torch.from_numpy(tokens)].numpy(), task.seam)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="report to write (.json)")
    parser.add_argument("--limit", type=int, default=12, help="scenes")
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each scene")
    parser.add_argument("--splits", nargs="+", choices=WAYS, default=list(WAYS))
    a = parser.parse_args(arguments)
    checkpoint, index = load_model("pocket", "fp32", "cpu"), load_index("pocket")
    library, scorer = Library(checkpoint, index), load_scorer(DATA / "scorer.safetensors")
    scenes, grid = read_scenes(DATA), checkpoint.model.grid
    tokens, report = scene_tokens(checkpoint, scenes, DATA), {}
    for split in a.splits:
        ways = WAYS[split]
        tasks = make_tasks(scenes, tokens, grid, split, a.limit)
        truth = [seam_bits(checkpoint, task.tokens, task) for task in tasks]
        report[split] = {"scenes": len(tasks), "as it was": {"seam": [float(np.mean(truth))]}}
        for name, way in ways.items():
            made = measure(checkpoint, library, scorer, tasks, way, range(a.seeds))
            report[split][name] = made
            print(split, name, {k: f"{np.mean(v):.3f} ± {np.std(v):.3f}" for k, v in made.items()})
            a.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(split, "as it was", f"{np.mean(truth):.3f}")


if __name__ == "__main__":
    main()
