"""What a negative prompt does on the shipped pocket model, and what it costs.

    python -m scripts.bench_negative --out docs/measured/negative.json

Effect: pictures of the same seeds without and with it; the benchmark's detector says what is on
them. Cost: the same drawing without and with negative prompts of several lengths, in turn.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arrag_engine import load_model, session
from arrag_engine.checkpoints import Checkpoint
from arrag_engine.models.pixels import to_uint8
from arrag_engine.settings import SamplingChoice
from scripts.pocket.bench import SCORER
from scripts.pocket.bench.scorer import Detection, Scorer, load_scorer

GUIDANCES = (1.5, 2.0)
"""The recommended one, and a stronger one, with which a negative prompt says more."""
PAIRS = (
    ("lion", "mushroom"),
    ("car", "house"),
    ("dog", "tree"),
    ("cat", "rocket"),
    ("panda", "balloon"),
    ("rabbit", "pumpkin"),
)
KINDS = {
    "two things": ("a {0} and a {1}", "a {1}"),
    "two coloured things": ("a red {0} and a blue {1}", "a blue {1}"),
    "a thing that is not in the prompt": ("a {0}", "a {1}"),
}
"""Prompt and negative prompt, of the names of a pair; the second one is to go away."""
COSTS = {
    "none": "",
    "as long as the prompt": "a blue house",
    "ten words": "a blue house and a green mushroom in the dark desert",
}


def drawn(
    model: Checkpoint, prompt: str, negative: str, cfg: float, seeds: Sequence[int]
) -> Tensor:
    """Tokens [B, N]."""
    choice = SamplingChoice(cfg=cfg, temperature=0.6, top_p=0.95)
    planned = session.plan(model, prompt, choice, negative=negative)
    return session.draw(model, planned, seeds).tokens


@torch.inference_mode()
def detected(model: Checkpoint, scorer: Scorer, tokens: Tensor) -> list[list[Detection]]:
    pixels = [to_uint8(model.model.vq.decode(one[None])) for one in tokens]
    return scorer.detect(torch.cat(pixels).numpy())


def share(found: Sequence[Sequence[Detection]], name: str) -> np.ndarray:
    """[seeds] 1 where a picture has the thing."""
    return np.array([any(thing.name == name for thing in one) for one in found], float)


def effect(model: Checkpoint, scorer: Scorer, kind: str, cfg: float, seeds: int) -> dict[str, Any]:
    """Shares of pictures, each with its spread over seeds: changed by the negative prompt, with
    what it names and with the other thing, without it and with it."""
    shares: dict[str, list[np.ndarray]] = {}
    for pair in PAIRS:
        prompt, negative = (text.format(*pair) for text in KINDS[kind])
        without, with_it = (
            drawn(model, prompt, text, cfg, range(seeds)) for text in ("", negative)
        )
        differs = (without != with_it).flatten(1).double()
        shares.setdefault("changed", []).append((differs.amax(1)).numpy())
        shares.setdefault("tokens changed", []).append(differs.mean(1).numpy())
        for when, tokens in (("without", without), ("with", with_it)):
            found = detected(model, scorer, tokens)
            shares.setdefault(f"other {when}", []).append(share(found, pair[0]))
            shares.setdefault(f"named {when}", []).append(share(found, pair[1]))
    row: dict[str, Any] = {"kind": kind, "cfg": cfg, "pictures": seeds * len(PAIRS)}
    for name, values in shares.items():
        by_seed = np.mean(values, axis=0)
        row[name] = [round(float(by_seed.mean()), 3), round(float(by_seed.std(ddof=1)), 3)]
    return row


def cost(model: Checkpoint, batch: int, rounds: int) -> list[dict[str, Any]]:
    """CPU seconds of a drawing in turn; the ratio of each round to the one without."""
    seconds: dict[str, list[float]] = {name: [] for name in COSTS}
    for turn in range(-1, rounds):  # the first one warms up
        for name, negative in COSTS.items():
            taken = cpu_seconds(
                lambda text=negative: drawn(model, "a red car", text, 1.5, range(batch))
            )
            if turn >= 0:
                seconds[name].append(taken)
    plain = seconds["none"]
    return [
        {
            "negative": name,
            "batch": batch,
            "cpu seconds": [round(f(taken), 3) for f in (median, min, max)],
            "ratio": round(median(t / p for t, p in zip(taken, plain, strict=True)), 3),
        }
        for name, taken in seconds.items()
    ]


def cpu_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4, help="of each prompt; 0 = none")
    parser.add_argument("--rounds", type=int, default=9, help="of the timing; 0 = none")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model, scorer = load_model("pocket", dtype="fp32", device="cpu"), load_scorer(SCORER)
    facts: dict[str, Any] = {"model": "pocket, fp32", "torch": torch.__version__}
    facts |= {"seeds": args.seeds, "rounds": args.rounds, "cost": [], "effect": []}
    for kind in KINDS if args.seeds else ():
        for cfg in GUIDANCES:
            facts["effect"].append(effect(model, scorer, kind, cfg, args.seeds))
            print(facts["effect"][-1], flush=True)
    for batch in (1, 4) if args.rounds else ():
        facts["cost"] += cost(model, batch, args.rounds)
        print(*facts["cost"][-len(COSTS) :], sep="\n", flush=True)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
