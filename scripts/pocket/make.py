"""Make the pocket model and all that ships with it, from the emoji packages on.

    python scripts/pocket/make.py --work WORK --out OUT --start MODEL
    python scripts/pocket/make.py --work WORK --out OUT --start MODEL --scale 0.02

Pictures, tokenizer, decoder, index, scorer and benchmark, the calibration of `auto`, the FAiD
adapter. With a model file to start from it goes on from its weights, else from nothing. The second
line rehearses the whole chain on a fiftieth of the scenes, minutes and steps.

Every step picks up where an interrupted run stopped; delete WORK to start over. OUT has models,
indexes and adapters as `arrag_engine/shipped`, and `bench`, which belongs in
`scripts/pocket/bench/data`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from finish import (
    SAMPLING,
    export_index,
    export_model,
    load_trained,
    write_pictures,
    write_samples,
)
from tokenizer import tokenizer_json
from tokens import USAGE
from train_scorer import SCORER
from training import scaled

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.models.janus.prompt import PromptEncoder

HERE = Path(__file__).parent
NAME = "pocket.safetensors"
CALIBRATED_ON = 360
"""Scenes of either sort."""


def run(script: str, *flags: object) -> None:
    subprocess.run([sys.executable, HERE / script, *map(str, flags)], check=True)


def train(script: str, args: argparse.Namespace, minutes: float, *flags: object) -> None:
    """Run a training script; it returns at once if its minutes are used up already."""
    shared = ["--work", args.work, "--archives", args.archives, "--seed", args.seed]
    shared += ["--workers", args.workers, "--scale", args.scale]
    run(script, *shared, "--minutes", minutes * args.scale, *flags)


def make_model(args: argparse.Namespace, path: Path) -> None:
    """Train tokenizer and decoder, write the model and WORK/samples.png."""
    start = ["--start", args.start] if args.start else []
    train("train_vq.py", args, args.minutes_vq, *start)
    train("train_decoder.py", args, args.minutes_decoder, *start)
    eyes = args.work / "eyes.safetensors"  # not those that judge in the end
    train("train_scorer.py", args, args.minutes_eyes, "--seed", args.seed + 1, "--out", eyes)
    train("refine_vq.py", args, args.minutes_refine, "--eyes", eyes)
    model = load_trained(args.work)
    models = [(model, PromptEncoder(tokenizer_json()), SAMPLING)]
    if args.start:
        before = load_checkpoint(args.start, torch.float32)
        models.insert(0, (before.model, before.prompt_encoder, SAMPLING))
    write_samples(args.work / "samples.png", models, args.scale)
    export_model(model, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for what lies between")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--archives", type=Path, help="folder of the emoji packages (WORK/npm)")
    parser.add_argument("--minutes-vq", type=float, default=40)
    parser.add_argument("--minutes-decoder", type=float, default=60)
    parser.add_argument("--minutes-eyes", type=float, default=6)
    parser.add_argument("--minutes-refine", type=float, default=9)
    parser.add_argument("--minutes-scorer", type=float, default=25)
    parser.add_argument("--scale", type=float, default=1.0, help="of scenes, minutes and steps")
    parser.add_argument("--start", type=Path, help="model file to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="training processes")
    args = parser.parse_args()
    args.archives = args.archives or args.work / "npm"
    made = {name: args.out / name / NAME for name in ("models", "indexes", "adapters")}
    for path in made.values():
        path.parent.mkdir(parents=True, exist_ok=True)

    make_model(args, made["models"])
    pictures = args.work / "pictures"
    write_pictures(pictures, args.archives, args.scale)
    export_index(made["models"], pictures, args.work, made["indexes"])
    train("train_scorer.py", args, args.minutes_scorer)
    parts = ["--model", made["models"], "--usage", args.work / USAGE, "--archives", args.archives]
    bench = args.out / "bench"
    scorer = ["--scorer", args.work / SCORER, "--pictures", pictures]
    run("make_bench.py", *parts, *scorer, "--out", bench, "--scale", args.scale)
    index = ["--index", made["indexes"]]
    scenes = scaled(CALIBRATED_ON, args.scale, 12)
    run("calibrate_index.py", *parts, *index, "--out", made["indexes"], "--scenes", scenes)
    adapter = ["--work", args.work, "--workers", args.workers, "--bench", bench]
    adapter += ["--scale", args.scale, "--out", made["adapters"]]
    run("train_adapter.py", *parts, *index, *adapter)


if __name__ == "__main__":
    main()
