"""Train the tokenizer's decoding half a little longer, on the codes that the drawing decoder uses.

    python scripts/pocket/refine_vq.py --work WORK --minutes 8 --eyes WORK/eyes.safetensors

Codes stay what they are: encoder and codebook are frozen. What a detector sees in a reconstruction
shall be what it sees in the original; let another one judge than the one given here. Needs
WORK/vq.pt and WORK/usage.npz; writes WORK/refined.pt (resumable) and WORK/refined.jsonl.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import training
from data import Composer
from patches import patch_contents
from tokens import USAGE, Usage, load_vq
from torch import Tensor, nn
from train_vq import (
    SQUARED,
    draw_batch,
    edge_loss,
    held_out_scenes,
    make_mix,
    psnr,
    to_images,
)

from arrag_engine.models.janus.vq import VQModel
from arrag_engine.models.pixels import to_uint8
from scripts.pocket.bench.scorer import load_scorer

LR = 4e-4
SETTLED = 0.75
"""Share of pictures shown by the settled codes; the rest by what the encoder chose."""
PICTURES = 8
SEEN = 1.0
"""Weight of what the eyes see in the loss."""
STAGES = (3, 8)
"""Layers of the eyes that are compared: the last of each resolution."""


def target_codes(model: VQModel, usage: Usage, images: Tensor, settled: np.ndarray) -> Tensor:
    """Codes [B, h, w] of images [B, 3, H, W], settled where `settled` [B] says so."""
    with torch.inference_mode():
        codes, _ = model.encode(images)
    pixels = ((images.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    own = codes.flatten(1).numpy()
    chosen = np.where(settled[:, None], usage.settle(patch_contents(pixels), own), own)
    return torch.from_numpy(chosen.astype(np.int64)).view(codes.shape)


def seen_loss(eyes: nn.Sequential, a: Tensor, b: Tensor) -> Tensor:
    """L1 between what the layers STAGES of a detector's trunk see in images a and b."""
    loss = a.new_zeros(())
    for number, layer in enumerate(eyes):
        a, b = layer(a), layer(b)
        if number in STAGES:
            loss = loss + (a - b).abs().mean()
    return loss


class Refiner:
    def __init__(self, args: argparse.Namespace) -> None:
        self.work, self.seed = args.work, args.seed
        self.mix: dict[str, Composer] = make_mix(args.archives, "train", 0.0)
        self.usage = Usage.load(self.work / USAGE)
        self.model = load_vq(self.work / "vq.pt")
        trained = [*self.model.decoder.parameters(), *self.model.post_quant_conv.parameters()]
        self.optimizer = torch.optim.AdamW(trained, LR, betas=(0.9, 0.98), weight_decay=0.01)
        for parameter in trained:
            parameter.requires_grad_(True)
        self.average = training.Average(self.model, 0.99)
        self.budget = training.Budget(args.minutes)
        self.steps = 0
        self.log = training.Log(self.work / "refined.jsonl")
        self.held_out = held_out_scenes(args.archives, training.scaled(64, args.scale))
        self.eyes = load_scorer(args.eyes).trunk if args.eyes else None

    @property
    def path(self) -> Path:
        return self.work / "refined.pt"

    def resume(self) -> None:
        if not self.path.exists():
            return
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.weights, self.average.steps = state["average"], state["steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
        self.budget.resume(state["elapsed"])

    def save(self) -> None:
        config = torch.load(self.work / "vq.pt", weights_only=True)["config"]
        state = {
            "config": config,
            "model": self.model.state_dict(),
            "average": self.average.weights,
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "elapsed": self.budget.elapsed,
        }
        training.save(self.path, state)

    def step(self) -> None:
        training.set_lr([self.optimizer], training.schedule(self.budget.progress))
        rng = np.random.default_rng((self.seed, self.steps, 2))
        images = to_images(draw_batch(self.mix, rng)[:PICTURES])
        codes = target_codes(self.model, self.usage, images, rng.random(len(images)) < SETTLED)
        output = self.model.decode(codes)
        delta = output - images
        loss = delta.abs().mean() + SQUARED * delta.square().mean() + edge_loss(output, images)
        if self.eyes is not None:
            loss = loss + SEEN * seen_loss(self.eyes, output, images)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.model)
        self.steps += 1

    def report(self) -> None:
        """Log how the averaged weights show held-out scenes, from either kind of codes."""
        model = load_vq(self.work / "vq.pt")
        model.load_state_dict(self.average.weights)
        values = {}
        for part, images in self.held_out.items():
            for name, share in (("own", 0), ("settled", 1)):
                codes = target_codes(model, self.usage, images, np.full(len(images), share > 0))
                with torch.inference_mode():
                    shown = to_uint8(model.decode(codes) + 1 / 255)
                values[f"psnr_{part}_{name}"] = float(
                    psnr(shown, to_uint8(images + 1 / 255)).mean()
                )
        self.log(step=self.steps, minutes=self.budget.elapsed / 60, **values)
        self.save()

    def run(self) -> None:
        self.report()
        due = time.monotonic() + training.SAVE_SECONDS
        while self.budget.progress < 1:
            self.step()
            if time.monotonic() > due:
                self.report()
                due = time.monotonic() + training.SAVE_SECONDS
        self.report()


def main() -> None:
    parser = training.make_parser(__doc__, minutes=8)
    parser.add_argument("--eyes", type=Path, help="scorer file of train_scorer.py")
    args = training.parse_arguments(parser)
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    refiner = Refiner(args)
    refiner.resume()
    refiner.run()


if __name__ == "__main__":
    main()
