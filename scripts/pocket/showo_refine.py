"""Train the decoding half of pocket-o's picture tokenizer a little longer, on settled codes.

    python scripts/pocket/showo_refine.py --work WORK --minutes 9 --eyes WORK/eyes.safetensors

As `refine_vq.py` does for `pocket`: codes stay what they are. Needs WORK/showo-vq.pt, the pool `vq`
and `usage.npz`; writes WORK/showo-refined.pt (resumable) and WORK/showo-refined.jsonl.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import training
from pool import Pool, to_images
from refine_vq import SEEN, SETTLED, seen_loss
from showo_vq import load_vq
from tokens import USAGE, Usage
from torch import Tensor
from train_vq import SQUARED, edge_loss, psnr

from arrag_engine.models.pixels import to_uint8
from arrag_engine.models.showo.vq import VQModel
from scripts.pocket.bench.scorer import load_scorer

NAME = "showo-refined"
RATES = (2e-4, 4e-4)
BATCH = 8


@torch.inference_mode()
def codes_of(vq: VQModel, pool: Pool, usage: Usage, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the encoder chose for the scenes of a pool, and the settled codes [scenes, N]."""
    parts = [vq.encode(to_images(part.to(device)))[0].flatten(1) for part in pool.pixels.split(64)]
    own = torch.cat(parts).cpu().numpy()
    settled = usage.settle(pool.contents.numpy().view(np.uint64), own).astype(np.int64)
    return torch.from_numpy(own).to(device), torch.from_numpy(settled).to(device)


class Refiner(training.Trainer):
    def __init__(self, team: training.Team, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        device = torch.device(args.device)
        self.vq = load_vq(args.work / "showo-vq.pt", device)
        decoder = self.vq.decoder.requires_grad_(True)
        inner = [p for p in decoder.parameters() if p.ndim > 1 and min(p.shape[:2]) > 16]
        super().__init__(NAME, team, args, decoder, inner, RATES, 0.99)
        usage = Usage.load(args.work / USAGE)
        self.pools = {name: Pool.load(args.work / f"pool-{name}") for name in ("vq", "vq_held_out")}
        self.codes = {n: codes_of(self.vq, p, usage, device) for n, p in self.pools.items()}
        self.eyes = load_scorer(args.eyes).trunk.to(device) if args.eyes else None
        self.batch = args.batch

    def loss(self, rng: np.random.Generator, progress: float) -> Tensor:
        rows = torch.from_numpy(rng.integers(len(self.pools["vq"]), size=self.batch))
        settled = torch.from_numpy(rng.random((self.batch, 1)) < SETTLED).to(self.device)
        own, common = (codes[rows.to(self.device)] for codes in self.codes["vq"])
        images = to_images(self.pools["vq"].pixels[rows].to(self.device))
        side = int(own.shape[1] ** 0.5)
        output = self.vq.decode(torch.where(settled, common, own).unflatten(1, (side, side)))
        delta = output - images
        loss = delta.abs().mean() + SQUARED * delta.square().mean() + edge_loss(output, images)
        return loss if self.eyes is None else loss + SEEN * seen_loss(self.eyes, output, images)

    @torch.inference_mode()
    def measure(self, last: bool) -> dict[str, float]:
        vq = load_vq(self.path.with_name("showo-vq.pt"), self.device)
        vq.decoder.load_state_dict(self.average.weights)
        originals = to_uint8(to_images(self.pools["vq_held_out"].pixels) + 1 / 255)
        side = int(self.codes["vq_held_out"][0].shape[1] ** 0.5)
        values = {}
        for name, codes in zip(("own", "settled"), self.codes["vq_held_out"], strict=True):
            parts = codes.unflatten(1, (side, side)).split(32)
            shown = torch.cat([to_uint8(vq.decode(part) + 1 / 255).cpu() for part in parts])
            values[f"psnr_{name}"] = float(psnr(shown, originals).mean())
        return values


def load_refined(work: Path, device: torch.device) -> VQModel:
    """The tokenizer with the averaged weights of its refined decoding half."""
    vq = load_vq(work / "showo-vq.pt", device)
    state = torch.load(work / f"{NAME}.pt", device, weights_only=True)
    vq.decoder.load_state_dict(state["average"])
    return vq


def train(team: training.Team, args: argparse.Namespace) -> None:
    trainer = Refiner(team, args)
    trainer.resume()
    trainer.run()


def main() -> None:
    parser = training.make_parser(__doc__ or "", minutes=9)
    training.add_device(parser, BATCH)
    parser.add_argument("--eyes", type=Path, help="scorer file of train_scorer.py")
    args = training.parse_arguments(parser)
    training.run_team(args.workers, train, args)


if __name__ == "__main__":
    main()
