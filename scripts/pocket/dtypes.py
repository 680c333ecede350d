"""What each dtype of the decoder costs the pocket model.

    python scripts/pocket/dtypes.py [--dtypes fp32 bf16 int8 fp8] [--limit 8] [--seeds 2]

For each dtype: bits a token of the benchmark's scenes, teacher-forced, without retrieval; the share
of those tokens that the model finds most probable as float32 does; and the share of equal tokens in
drawings with equal seeds at temperature 1 and at the model's own, against the first dtype. After
one token differs, a drawing goes its own way: `before` is the share drawn until then.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from arrag_engine import load_model, session
from arrag_engine.checkpoints import Checkpoint
from arrag_engine.likelihood import bits, model_probabilities
from arrag_engine.settings import SamplingChoice
from scripts.pocket.bench import DATA
from scripts.pocket.bench.scenes import BenchScene, limited, read_scenes
from scripts.pocket.bench.tasks import scene_tokens

PROMPTS = ("a red car", "two blue apples", "a green chair on the left of a yellow dog", "a cat")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16", "int8", "fp8"])
    parser.add_argument("--limit", type=int, default=8, help="scenes of a split; 0 = all")
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each prompt")
    a = parser.parse_args()
    scenes = limited(read_scenes(DATA), a.limit or None)
    first = None
    for dtype in a.dtypes:
        checkpoint = load_model("pocket", dtype, "cpu")
        true, best = teacher_forced(checkpoint, scenes)
        drawn = [draw(checkpoint, t, range(a.seeds)) for t in (1.0, None)]
        first = first or (best, drawn)
        shares = [f"{(best == first[0]).mean():.4f} of the most probable tokens"]
        for name, mine, theirs in zip(("1", "own"), drawn, first[1], strict=True):
            equal = mine == theirs
            before = equal.int().cumprod(dim=1).float().mean()
            shares.append(f"temperature {name}: {equal.float().mean():.3f}, before {before:.3f}")
        print(f"{dtype:<5} {bits(true):.4f} bits a token; equal: {'; '.join(shares)}", flush=True)


def teacher_forced(
    checkpoint: Checkpoint, scenes: list[BenchScene]
) -> tuple[np.ndarray, np.ndarray]:
    """Of all tokens of the scenes: their probability, and the code that is most probable."""
    true, best = [], []
    for scene, tokens in zip(scenes, scene_tokens(checkpoint, scenes, DATA), strict=True):
        prompt = checkpoint.prompt_encoder.encode(scene.truth.text)
        p = model_probabilities(checkpoint.model, prompt.ids, prompt.unconditional, tokens)
        true.append(p[torch.arange(len(tokens)), torch.from_numpy(tokens)].numpy())
        best.append(p.argmax(dim=1).numpy())
    return np.concatenate(true), np.concatenate(best)


def draw(checkpoint: Checkpoint, temperature: float | None, seeds: range) -> Tensor:
    """Tokens [pictures, N]."""
    choice = SamplingChoice(temperature=temperature)
    grids = []
    for prompt in PROMPTS:
        planned = session.plan(checkpoint, prompt, choice)
        grids.append(session.draw(checkpoint, planned, list(seeds)).tokens.flatten(1))
    return torch.cat(grids)


if __name__ == "__main__":
    main()
