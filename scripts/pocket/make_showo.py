"""Make pocket-o, a small Show-o of the same little world, and the index that ships with it.

    python scripts/pocket/make_showo.py --work WORK --out OUT
    python scripts/pocket/make_showo.py --work WORK --out OUT --device cuda
    python scripts/pocket/make_showo.py --work WORK --out OUT --scale 0.02

Pictures, tokenizer, decoder, the refined half of the tokenizer, model file, index. The second line
trains on a GPU, in a tenth of the time; the third rehearses the whole chain. Every step picks up
where an interrupted run stopped, within two minutes of its training; delete WORK to start over.
`make.py` makes the benchmark and the pictures' judge; `train_adapter.py` the FAiD adapter.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from finish import export_index, write_pictures, write_samples
from showo_decoder import CONFIG
from showo_decoder import NAME as DECODER
from showo_refine import load_refined
from tokenizer import SPECIAL_SHOWO, tokenizer_json
from torch import Tensor, nn
from training import scaled

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine.checkpoints import load_checkpoint, write_checkpoint
from arrag_engine.index import KeySpec
from arrag_engine.models.showo.layouts import official_name
from arrag_engine.models.showo.model import ShowO
from arrag_engine.models.showo.prompt import PromptEncoder
from arrag_engine.settings import Sampling

HERE = Path(__file__).parent
FILE = "pocket-o.safetensors"
KEYS = KeySpec("ring-8", "zero", "codebook")
SAMPLING = Sampling(cfg=2.0)


@dataclass(frozen=True)
class Pace:
    """How much is drawn and trained, and in which portions."""

    scenes: dict[str, int]
    """Of each pool."""
    minutes: dict[str, float]
    """Of each training script."""
    batch: dict[str, int]


CPU = Pace(
    {"vq": 40_000, "vq_held_out": 480, "decoder": 200_000, "decoder_held_out": 480},
    {"showo_vq": 60, "showo_decoder": 150, "showo_refine": 9},
    {"showo_vq": 8, "showo_decoder": 16, "showo_refine": 8},
)
"""For two cores."""
GPU = Pace(
    {"vq": 64_000, "vq_held_out": 480, "decoder": 320_000, "decoder_held_out": 480},
    {"showo_vq": 2.5, "showo_decoder": 4, "showo_refine": 0.6},
    {"showo_vq": 32, "showo_decoder": 256, "showo_refine": 32},
)
"""For an H100 with 16 cores, which draw the scenes."""


def run(script: str, *flags: object) -> None:
    subprocess.run([sys.executable, HERE / script, *map(str, flags)], check=True)


def train(args: argparse.Namespace, pace: Pace) -> None:
    """Every step up to the weights; a step that is done returns at once."""
    shared = ["--work", args.work, "--archives", args.archives, "--seed", args.seed]
    for name, count in pace.scenes.items():
        scenes = ["--scenes", scaled(count, args.scale, 64), "--workers", args.drawers]
        run("pool.py", name, *shared, *scenes)
    eyes = args.work / "eyes.safetensors"  # not those that judge in the end
    if not eyes.exists():
        run(
            "train_scorer.py",
            *shared[:4],
            "--seed",
            args.seed + 1,
            "--minutes",
            args.minutes_eyes * args.scale,
            "--scale",
            args.scale,
            "--out",
            eyes,
        )
    for script, minutes in pace.minutes.items():
        flags = ["--minutes", minutes * args.scale, "--batch", pace.batch[script]]
        flags += ["--device", args.device, "--workers", args.workers]
        run(f"{script}.py", *shared, *flags, *(["--eyes", eyes] if "refine" in script else []))


def load_trained(work: Path) -> ShowO:
    """The averaged weights of all trained parts."""
    model = ShowO(CONFIG).eval().requires_grad_(False)
    state = torch.load(work / f"{DECODER}.pt", "cpu", weights_only=True)
    nn.ModuleDict({"phi": model.phi, "head": model.head}).load_state_dict(state["average"])
    model.vq.load_state_dict(load_refined(work, torch.device("cpu")).state_dict())
    return model


def whole_head(part: Tensor) -> Tensor:
    """The head as the official layout has it: a row for every id, not for picture codes alone."""
    vocabulary = CONFIG.vocabulary
    whole = part.new_zeros(vocabulary.size, *part.shape[1:])
    whole[vocabulary.first_code : -1] = part
    return whole


def describe() -> dict[str, object]:
    """A config.json in the official shape, and what Phi-1.5 has otherwise."""
    phi, vocabulary = CONFIG.phi, CONFIG.vocabulary
    return {
        "_class_name": "Showo",
        "codebook_size": vocabulary.codes,
        "llm_vocab_size": vocabulary.text,
        "mask_token_id": vocabulary.mask,
        "num_vq_tokens": CONFIG.grid.size,
        "vocab_size": vocabulary.size,
        "max_text_len": CONFIG.max_text,
        "llm_config": {
            "partial_rotary_factor": phi.rotary_dim / phi.head_dim,
            "rope_theta": phi.rope_theta,
            "layer_norm_eps": phi.norm_eps,
            "max_position_embeddings": phi.max_positions,
        },
    }


def export_model(model: ShowO, path: Path) -> None:
    """Write the model in half precision under the official names."""
    tensors = {official_name(name): t.half() for name, t in model.state_dict().items()}
    for name in ("showo.lm_head.weight", "showo.lm_head.bias"):
        tensors[name] = whole_head(tensors[name])
    write_checkpoint(path, tensors, CONFIG.grid, describe(), tokenizer_json(SPECIAL_SHOWO))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for what lies between")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--archives", type=Path, help="folder of the emoji packages (WORK/npm)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--minutes-eyes", type=float, default=6)
    parser.add_argument("--scale", type=float, default=1.0, help="of scenes and minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="training processes (2, on a GPU 1)")
    parser.add_argument("--drawers", type=int, help="processes that draw scenes (2, with a GPU 16)")
    args = parser.parse_args()
    args.archives = args.archives or args.work / "npm"
    on_gpu = args.device == "cuda"
    args.workers = args.workers or (1 if on_gpu else 2)
    args.drawers = args.drawers or (16 if on_gpu else 2)
    made = {name: args.out / name / FILE for name in ("models", "indexes")}
    for path in (*made.values(), args.work / FILE):
        path.parent.mkdir(parents=True, exist_ok=True)

    train(args, GPU if on_gpu else CPU)
    model = load_trained(args.work)
    encoder = PromptEncoder(tokenizer_json(SPECIAL_SHOWO), CONFIG.vocabulary, CONFIG.max_text)
    write_samples(args.work / "samples.png", [(model, encoder, SAMPLING)], args.scale)
    export_model(model, made["models"])
    pictures = args.work / "pictures"
    write_pictures(pictures, args.archives, args.scale)
    export_index(made["models"], pictures, args.work, made["indexes"], KEYS, "bits")
    load_checkpoint(made["models"], torch.float32)  # raises if it is not whole


if __name__ == "__main__":
    main()
