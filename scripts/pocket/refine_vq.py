"""Teach both halves of the tokenizer the codes that the decoder draws with.

    python scripts/pocket/refine_vq.py --work WORK --minutes 25

The decoder learns one code for each patch content (`tokens.Usage`), where the encoder chooses among
several. Here the encoder learns to choose that one, and the decoding half to show it; the codebook
stays what it is, so does the meaning of every code. Needs WORK/vq.pt and WORK/usage.npz; writes
WORK/refined.pt (resumable) and WORK/refined.jsonl.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
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

from arrag_engine.vq import VQModel, to_uint8

LR = 4e-4
SETTLED = 0.75
"""Share of pictures that the decoding half sees in settled codes; the rest in what the encoder
chose at first."""
SHARPNESS = 40.0
"""The encoder's logits are its cosines with the codebook, so many times."""
PICTURES = 8


class Teacher:
    """The codes that pictures should have."""

    def __init__(self, model: VQModel, usage: Usage) -> None:
        self.model, self.usage = model, usage

    @torch.inference_mode()
    def codes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Settled codes and those of the first encoder, [B, h, w] each, of images [B, 3, H, W].

        Of contents that were never counted, the first encoder's are the settled ones.
        """
        own, _ = self.model.encode(images)
        pixels = ((images.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        settled = self.usage.settle(patch_contents(pixels), own.flatten(1).numpy())
        return torch.from_numpy(settled.astype(np.int64)).view(own.shape), own.clone()


class Refiner:
    def __init__(self, args: argparse.Namespace) -> None:
        self.work, self.seed = args.work, args.seed
        self.mix: dict[str, Composer] = make_mix(args.archives, "train", 0.0)
        self.model = load_vq(self.work / "vq.pt")
        self.teacher = Teacher(load_vq(self.work / "vq.pt"), Usage.load(self.work / USAGE))
        self.codebook = F.normalize(self.model.quantize.embedding.weight, dim=-1)
        trained = [p for n, p in self.model.named_parameters() if not n.startswith("quantize.")]
        self.optimizer = torch.optim.AdamW(trained, LR, betas=(0.9, 0.98), weight_decay=0.01)
        for parameter in trained:
            parameter.requires_grad_(True)
        self.average = training.Average(self.model, 0.99)
        self.budget = training.Budget(args.minutes)
        self.steps = 0
        self.log = training.Log(self.work / "refined.jsonl")
        self.held_out = held_out_scenes(args.archives, 64)

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
        settled, own = self.teacher.codes(images)
        use_settled = torch.from_numpy(rng.random(len(images)) < SETTLED)[:, None, None]
        loss = self.choice_loss(images, settled)
        loss = loss + self.show_loss(torch.where(use_settled, settled, own), images)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.model)
        self.steps += 1

    def choice_loss(self, images: Tensor, codes: Tensor) -> Tensor:
        """Cross-entropy (nats) of the encoder's choice among all codes."""
        logits = SHARPNESS * self.model.features(images).flatten(0, 2) @ self.codebook.T
        return F.cross_entropy(logits, codes.flatten())

    def show_loss(self, codes: Tensor, images: Tensor) -> Tensor:
        output = self.model.decode(codes)
        delta = output - images
        return delta.abs().mean() + SQUARED * delta.square().mean() + edge_loss(output, images)

    def report(self) -> None:
        """Log how often the averaged weights choose the settled code on held-out scenes, and how
        well their own choice and the settled codes show these."""
        model = load_vq(self.work / "vq.pt")
        model.load_state_dict(self.average.weights)
        values = {}
        for part, images in self.held_out.items():
            settled, _ = self.teacher.codes(images)
            with torch.inference_mode():
                own, _ = model.encode(images)
                values[f"settled_{part}"] = float((own == settled).float().mean())
                for name, codes in (("own", own), ("settled", settled)):
                    shown = to_uint8(model.decode(codes) + 1 / 255)
                    decibels = psnr(shown, to_uint8(images + 1 / 255))
                    values[f"psnr_{part}_{name}"] = float(decibels.mean())
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
    args = training.parse_arguments(training.make_parser(__doc__, minutes=25))
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    refiner = Refiner(args)
    refiner.resume()
    refiner.run()


if __name__ == "__main__":
    main()
