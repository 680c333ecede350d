"""Make the pocket model and its index: pictures, tokenizer, decoder, files.

    python scripts/pocket/make.py --work WORK --out OUT --start MODEL

With a model file to start from it goes on from its weights, else from nothing.

Every step picks up where an interrupted run stopped; delete WORK to start over. Writes
OUT/models/pocket.safetensors, OUT/indexes/pocket.safetensors and OUT/bench (see `eval pocket`).
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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine.checkpoint import load_checkpoint
from arrag_engine.prompt import PromptEncoder

HERE = Path(__file__).parent


def train(script: str, args: argparse.Namespace, minutes: float, start: bool = True) -> None:
    """Run a training script; it returns at once if its minutes are used up already."""
    command = [sys.executable, HERE / script, "--work", args.work, "--archives", args.archives]
    command += ["--minutes", minutes, "--seed", args.seed, "--workers", args.workers]
    command += ["--start", args.start] if args.start and start else []
    subprocess.run([str(part) for part in command], check=True)


def run(script: str, *flags: str | Path) -> None:
    subprocess.run([sys.executable, HERE / script, *flags], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for what lies between")
    parser.add_argument("--out", type=Path, required=True, help="folder for model and index")
    parser.add_argument("--archives", type=Path, help="folder of the emoji packages (WORK/npm)")
    parser.add_argument("--minutes-vq", type=float, default=40)
    parser.add_argument("--minutes-decoder", type=float, default=60)
    parser.add_argument("--minutes-refine", type=float, default=8)
    parser.add_argument("--minutes-scorer", type=float, default=25)
    parser.add_argument("--start", type=Path, help="model file to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="training processes")
    args = parser.parse_args()
    args.archives = args.archives or args.work / "npm"

    train("train_vq.py", args, args.minutes_vq)
    train("train_decoder.py", args, args.minutes_decoder)
    train("refine_vq.py", args, args.minutes_refine, start=False)
    model = load_trained(args.work)
    models = [(model, PromptEncoder(tokenizer_json()), SAMPLING)]
    if args.start:
        before = load_checkpoint(args.start, torch.float32)
        models.insert(0, (before.model, before.prompt_encoder, SAMPLING))
    write_samples(args.work / "samples.png", models)
    model_path = args.out / "models" / "pocket.safetensors"
    model_path.parent.mkdir(parents=True, exist_ok=True)
    export_model(model, model_path)
    pictures = args.work / "pictures"
    write_pictures(pictures, args.archives)
    index_path = args.out / "indexes" / "pocket.safetensors"
    index_path.parent.mkdir(parents=True, exist_ok=True)
    export_index(model_path, pictures, args.work, index_path)
    train("train_scorer.py", args, args.minutes_scorer, start=False)
    made = ["--model", model_path, "--usage", args.work / USAGE, "--archives", args.archives]
    bench = ["--scorer", args.work / SCORER, "--pictures", pictures, "--out", args.out / "bench"]
    run("make_bench.py", *made, *bench)
    run("calibrate_index.py", *made, "--index", index_path, "--out", index_path)


if __name__ == "__main__":
    main()
