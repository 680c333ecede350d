"""Train pocket-o's picture tokenizer: MAGVIT-v2's layout, whose codes are the signs of a vector.

    python scripts/pocket/showo_vq.py --work WORK --minutes 60 --workers 2
    python scripts/pocket/showo_vq.py --work WORK --minutes 3 --device cuda --batch 32

Needs the pools `vq` and `vq_held_out`. Writes WORK/showo-vq.pt (resumable), WORK/showo-vq.jsonl and
the sheet WORK/showo-vq.png (originals above reconstructions).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import training
from backgrounds import SIZE
from pool import Pool, to_images
from torch import Tensor
from train_vq import SQUARED, edge_loss, psnr, write_sheet

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine.models.pixels import to_uint8
from arrag_engine.models.showo.vq import VQConfig, VQModel, signs

CONFIG = VQConfig(32, (32, 32, 64, 128), (1, 1, 1, 1), (32, 32, 64, 128), (1, 1, 1, 2), bits=11)
NAME = "showo-vq"
RATES = (1e-3, 1e-3)
BATCH = 8
MIXED = 0.25
"""Share of pictures that consist of the left half of one scene and the right half of another."""
COMMITMENT, CONSISTENCY, CERTAIN, SPREAD = 0.05, 0.1, 0.02, 0.02
"""Weights in the loss; see `Coding`."""
SHARPNESS = 4.0
"""Of the probability that a bit is set, by the number whose sign it is."""
MEASURED = 48
"""Held-out scenes that are measured on the way."""


def mixed(images: Tensor, contents: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Images [B, 3, H, W] and contents [B, patches] and `count` more, halves of two of them: the
    same patches in other surroundings."""
    left, right = slice(0, 2 * count, 2), slice(1, 2 * count, 2)
    half, width = SIZE // 2, int(contents.shape[1] ** 0.5)
    more = torch.cat((images[left, :, :, :half], images[right, :, :, half:]), dim=3)
    grid = contents.unflatten(1, (width, width))
    put = torch.cat((grid[left, :, : width // 2], grid[right, :, width // 2 :]), dim=2)
    return torch.cat((images, more)), torch.cat((contents, put.flatten(1)))


def contents_mean(z: Tensor, contents: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [contents, bits] of the numbers z [N, bits] of patches that show the same, and which
    of them belongs to each patch [N]."""
    different, number = contents.unique(return_inverse=True)
    total = z.new_zeros(len(different), z.shape[1]).index_add(0, number, z)
    times = z.new_zeros(len(different)).index_add(0, number, torch.ones_like(z[:, 0]))
    return total / times[:, None], number


def code_entropy(z: Tensor) -> Tensor:
    """Entropy in nats of the codes of z [N, bits], each bit set with a probability."""
    bits = z.shape[1]
    codes = torch.arange(2**bits, device=z.device)
    is_set = (codes[:, None] >> torch.arange(bits - 1, -1, -1, device=z.device) & 1).to(z.dtype)
    log_set, log_clear = F.logsigmoid(SHARPNESS * z), F.logsigmoid(-SHARPNESS * z)
    log_p = log_set @ is_set.T + log_clear @ (1 - is_set).T
    p = log_p.exp().mean(0)
    return -(p * (p + 1e-9).log()).sum()


def bit_entropy(z: Tensor) -> Tensor:
    """Mean entropy in nats of the bits of a patch, of z [N, bits]: how uncertain they are."""
    p = torch.sigmoid(SHARPNESS * z)
    entropy = -(p * F.logsigmoid(SHARPNESS * z) + (1 - p) * F.logsigmoid(-SHARPNESS * z))
    return entropy.sum(1).mean()


def coding_loss(z: Tensor, contents: Tensor) -> Tensor:
    """What the numbers z [N, bits] should be, whatever the picture looks like.

    Near 1 or -1 (commitment), certain, the same wherever a patch shows the same (consistency: the
    decoder has to guess codes, not surroundings), and different codes for different contents; a
    content counts once, so that a plain background need not use many codes.
    """
    mean, number = contents_mean(z, contents)
    commitment = (z - z.detach().sign()).square().sum(1).mean()
    spread = (z - mean.detach()[number]).square().sum(1).mean()
    return (
        COMMITMENT * commitment
        + CONSISTENCY * spread
        + CERTAIN * bit_entropy(z)
        - SPREAD * code_entropy(mean)
    )


class VQTrainer(training.Trainer):
    def __init__(self, team: training.Team, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        device = torch.device(args.device)
        model = VQModel(CONFIG).to(device, memory_format=torch.channels_last)
        inner = [p for p in model.parameters() if p.ndim > 1 and min(p.shape[:2]) > CONFIG.bits]
        super().__init__(NAME, team, args, model, inner, RATES, 0.997)
        self.pool = Pool.load(args.work / "pool-vq").to(device)
        self.held_out = Pool.load(args.work / "pool-vq_held_out").to(device)
        self.batch, self.sheet = args.batch, args.work / f"{NAME}.png"

    def loss(self, rng: np.random.Generator, progress: float) -> Tensor:
        extra = round(MIXED * self.batch)
        rows = torch.from_numpy(rng.integers(len(self.pool), size=self.batch - extra))
        rows = rows.to(self.device)
        pixels, contents = mixed(self.pool.pixels[rows], self.pool.contents[rows], extra)
        images = to_images(pixels).contiguous(memory_format=torch.channels_last)
        z = self.model.encoder(images)
        through = z + (signs(z > 0) - z).detach()
        output = self.model.decoder(through)
        delta = output - images
        shown = delta.abs().mean() + SQUARED * delta.square().mean() + edge_loss(output, images)
        return shown + coding_loss(z.permute(0, 2, 3, 1).flatten(0, 2), contents.flatten())

    @torch.inference_mode()
    def measure(self, last: bool) -> dict[str, float]:
        count = len(self.held_out) if last else MEASURED
        model = averaged(self.average.weights, self.device)
        pixels, contents = self.held_out.pixels[:count], self.held_out.contents[:count]
        codes, copies = [], []
        for part in to_images(pixels).split(32):
            codes.append(model.encode(part)[0])
            copies.append(to_uint8(model.decode(codes[-1]) + 1 / 255).cpu())
        originals = to_images(pixels).cpu()
        write_sheet(self.sheet, originals[:MEASURED], torch.cat(copies)[:MEASURED])
        drawn = torch.cat(codes).flatten()
        return {
            "psnr": float(psnr(torch.cat(copies), to_uint8(originals + 1 / 255)).mean()),
            "codes_used": len(drawn.unique()) / CONFIG.codebook_size,
            "same_code": agreement(drawn, contents.flatten()),
        }


def agreement(codes: Tensor, contents: Tensor) -> float:
    """Share of the patches that come again and have the commonest code of what they show."""
    pairs, times = torch.stack((contents, codes)).unique(dim=1, return_counts=True)
    kinds, number = pairs[0].unique(return_inverse=True)
    total = torch.zeros(len(kinds), dtype=torch.long, device=codes.device)
    best = total.scatter_reduce(0, number, times, "amax")
    total = total.index_add(0, number, times)
    again = total > 1
    return float(best[again].sum() / total[again].sum())


def averaged(weights: dict[str, Tensor], device: torch.device) -> VQModel:
    """A tokenizer with the given weights, ready to encode and decode."""
    model = VQModel(CONFIG).to(device, memory_format=torch.channels_last)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def load_vq(path: Path, device: torch.device) -> VQModel:
    """The averaged weights of a checkpoint."""
    return averaged(torch.load(path, device, weights_only=True)["average"], device)


def train(team: training.Team, args: argparse.Namespace) -> None:
    trainer = VQTrainer(team, args)
    trainer.resume()
    trainer.run()


def main() -> None:
    parser = training.make_parser(__doc__ or "", minutes=60)
    training.add_device(parser, BATCH)
    args = training.parse_arguments(parser)
    training.run_team(args.workers, train, args)


if __name__ == "__main__":
    main()
