"""Tokens accepted per pass by each rule of first guesses, on the shipped pocket model.

    python -m scripts.bench_drafts --out docs/measured/drafts.json

The picture is the same with any rule, which is checked; only the number of passes differs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import get_args

import torch

import arrag_engine as arrag
from arrag_engine import session
from arrag_engine.decode.choice import DraftRule
from arrag_engine.decode.raster import draw_raster
from arrag_engine.settings import SamplingChoice

PROMPTS = ("a red car", "a guitar", "two apples", "a flamingo", "a lion in the desert")
TEMPERATURES = (0.3, 0.6, 1.0)
WEIGHTS = (0.1, 0.5)


def recipes(model, index, adapter, temperature: float) -> dict[str, list]:
    """Recipes of all prompts by what is drawn with."""
    sampling = SamplingChoice(temperature=temperature, top_p=0.95)
    kinds = {"plain": ([], None), "FAiD": ([arrag.Layer(index, weight=0.0)], arrag.Faid(adapter))}
    for weight in WEIGHTS:
        kinds[f"DAiD {weight:g}"] = ([arrag.Layer(index, only="", weight=weight)], None)
    return {
        name: [session.plan(model, p, sampling, layers, faid).recipe for p in PROMPTS]
        for name, (layers, faid) in kinds.items()
    }


def measure(model, some: list, window: int, seed: int) -> dict[DraftRule, float]:
    """Mean tokens per pass by rule; each picture must be the sequential one."""
    rates: dict[DraftRule, list[float]] = {rule: [] for rule in get_args(DraftRule)}
    for recipe in some:
        wanted = draw_raster(model.model, recipe, [seed]).tokens
        for rule, found in rates.items():
            drawing = draw_raster(model.model, recipe, [seed], window, rule=rule)
            assert torch.equal(wanted, drawing.tokens), f"the rule {rule} changed the picture"
            found.append(model.model.grid.size / drawing.passes)
    return {rule: round(mean(found), 2) for rule, found in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = arrag.load_model("pocket", dtype="fp32", device="cpu")
    index, adapter = arrag.load_index("pocket"), arrag.load_adapter("pocket", model)
    rows = []
    for temperature in TEMPERATURES:
        for kind, some in recipes(model, index, adapter, temperature).items():
            rates = measure(model, some, args.window, args.seed)
            rows.append({"temperature": temperature, "kind": kind, **rates})
            print(rows[-1], flush=True)
    if args.out is not None:
        facts = {
            "model": "pocket, fp32",
            "window": args.window,
            "seed": args.seed,
            "torch": torch.__version__,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**facts, "tokens a pass": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
