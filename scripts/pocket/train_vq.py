"""Train the pocket model's picture tokenizer on composed scenes.

    python scripts/pocket/train_vq.py --work WORK --minutes 45 --workers 2

Writes WORK/vq.pt (resumable), WORK/vq.jsonl and the sheet WORK/vq.png (originals above
reconstructions).
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import training
from data import SIZE, STEP, Composer, make_composer
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine.vq import VQConfig, VQModel, to_uint8

CONFIG = VQConfig(
    base_channels=32,
    channel_multiplier=(1, 1, 2, 4),
    num_res_blocks=1,
    z_channels=64,
    codebook_size=1024,
    codebook_dim=8,
)
IDLE_BLOCKS = (
    "encoder.conv_blocks.0.res.0",
    "decoder.conv_blocks.2.res.1",
    "decoder.conv_blocks.3.res.0",
)
"""Residual blocks at high resolution that stay zero, so that they need not be computed while
training: in the same minutes the rest then sees nearly twice as many pictures."""
BATCH, CROP = 12, 64
FULL_BATCH, FULL_FROM = 6, 0.7
"""Crops teach more per pixel; whole scenes at the end settle the group norms' statistics."""
LR = 2e-3
COMMITMENT = 0.25
HELD_OUT_SEED = 10_000_000
"""Generator seed of the scenes that nothing is trained on."""


def skip_idle(model: VQModel) -> None:
    """Make the idle blocks zero and cheap: their input is what they would compute anyway."""
    for name in IDLE_BLOCKS:
        idle = model.get_submodule(name)
        nn.init.zeros_(idle.conv2.weight)
        nn.init.zeros_(idle.conv2.bias)
        idle.forward = lambda x: x


class CodeUse:
    """Codebook as a running mean of the vectors assigned to each code; unused codes start anew."""

    def __init__(self, codebook: nn.Embedding, decay: float = 0.98) -> None:
        self.codebook = codebook
        self.decay = decay
        self.count = torch.zeros(codebook.num_embeddings)
        self.total = F.normalize(codebook.weight.detach(), dim=-1)

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor, revive: bool, team: training.Team) -> None:
        """Take in vectors [N, dim] assigned to codes [N]."""
        hits = torch.bincount(codes, minlength=len(self.count)).float()
        sums = torch.zeros_like(self.total).index_add_(0, codes, vectors)
        team.mean([hits, sums])
        self.count.lerp_(hits, 1 - self.decay)
        self.total.lerp_(sums, 1 - self.decay)
        dead = (self.count < 0.02).nonzero().flatten() if revive else codes[:0]
        if len(dead):
            dead = dead[: len(vectors) // 8]
            fresh = vectors[torch.randperm(len(vectors))[: len(dead)]]
            self.total[dead], self.count[dead] = fresh * 0.2, 0.2
        team.follow(self.total, self.count)
        self.codebook.weight.copy_(F.normalize(self.total, dim=-1))


def batch(composer: Composer, rng: np.random.Generator, count: int, size: int) -> Tensor:
    """Patch-aligned random crops [count, 3, size, size] in [-1, 1] of fresh scenes."""
    crops = []
    for _ in range(count):
        top, left = STEP * rng.integers((SIZE - size) // STEP + 1, size=2)
        pixels = composer.scene(rng).pixels[top : top + size, left : left + size]
        crops.append(pixels)
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)  # channels-last memory
    return images.float() / 127.5 - 1


def edge_loss(a: Tensor, b: Tensor) -> Tensor:
    """L1 between the horizontal and vertical differences of a and b, at two scales."""
    loss = a.new_zeros(())
    for _ in range(2):
        delta = a - b
        loss = loss + (delta.diff(dim=2).abs().mean() + delta.diff(dim=3).abs().mean())
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return loss


def forward(model: VQModel, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, vectors [N, dim] and codes [N] of a batch; gradients pass straight through."""
    vectors = model.features(images)
    codes = model.nearest(vectors.detach())
    chosen = model.quantize(codes).detach()
    through = vectors + (chosen - vectors).detach()
    output = model.decoder(model.post_quant_conv(through.permute(0, 3, 1, 2)))
    delta = output - images
    loss = delta.abs().mean() + 2 * delta.square().mean() + edge_loss(output, images)
    commitment = (vectors - chosen).square().sum(-1).mean()
    dim = vectors.shape[-1]
    return loss + COMMITMENT * commitment, vectors.detach().view(-1, dim), codes.flatten()


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Decibels [B] between uint8 pictures [B, H, W, 3]."""
    return -10 * ((a.float() - b.float()) / 255).square().mean((1, 2, 3)).log10()


@torch.inference_mode()
def evaluate(model: VQModel, images: Tensor) -> tuple[Tensor, float, float]:
    """Reconstructions [B, H, W, 3] uint8, mean PSNR and share of the codes used."""
    codes, shown = [], []
    for part in images.split(32):
        part_codes, _ = model.encode(part)
        codes.append(part_codes)
        shown.append(to_uint8(model.decode(part_codes) + 1 / 255))
    out = torch.cat(shown)
    used = len(torch.cat(codes).unique()) / model.config.codebook_size
    return out, float(psnr(out, to_uint8(images + 1 / 255)).mean()), used


def write_sheet(path: Path, originals: Tensor, copies: Tensor, columns: int = 12) -> None:
    """Rows of originals [B, 3, H, W] with their reconstructions [B, H, W, 3] below."""
    rows = []
    for a, b in zip(to_uint8(originals).split(columns), copies.split(columns), strict=True):
        rows += [torch.cat(list(a), dim=1), torch.cat(list(b), dim=1)]
    Image.fromarray(torch.cat(rows).numpy()).save(path)


class Trainer:
    def __init__(
        self, team: training.Team, work: Path, archives: Path, minutes: float, seed: int
    ) -> None:
        torch.manual_seed(seed)
        self.team, self.work, self.seed = team, work, seed
        self.composer = make_composer(archives)
        self.model = VQModel(CONFIG).to(memory_format=torch.channels_last)
        skip_idle(self.model)
        self.use = CodeUse(self.model.quantize.embedding)
        self.model.quantize.embedding.weight.requires_grad_(False)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        inner = [p for p in trained if p.ndim > 1 and p.shape[0] > 8 and p.shape[1] > 8]
        rest = [p for p in trained if all(p is not q for q in inner)]
        self.optimizers = [
            torch.optim.AdamW(rest, LR, betas=(0.9, 0.98), weight_decay=0.01),
            training.Muon(inner, LR, team),
        ]
        self.average = training.Average(self.model, 0.997)
        self.budget = training.Budget(minutes)
        self.steps = 0
        self.log = training.Log(work / "vq.jsonl")
        self.held_out = batch(self.composer, np.random.default_rng(HELD_OUT_SEED), 240, SIZE)

    @property
    def path(self) -> Path:
        return self.work / "vq.pt"

    def resume(self) -> None:
        if not self.path.exists():
            return
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.weights, self.average.steps = state["average"], state["steps"]
        self.use.count, self.use.total = state["code_use"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.steps = state["steps"]
        self.budget.resume(state["elapsed"])

    def save(self) -> None:
        state = {
            "config": asdict(CONFIG),
            "model": self.model.state_dict(),
            "average": self.average.weights,
            "code_use": [self.use.count, self.use.total],
            "optimizers": [o.state_dict() for o in self.optimizers],
            "steps": self.steps,
            "elapsed": self.budget.elapsed,
        }
        training.save(self.path, state)

    def step(self) -> float:
        """One update; every step draws its own scenes from (seed, step)."""
        progress = self.team.agree(self.budget.progress)
        training.set_lr(self.optimizers, training.schedule(progress))
        rng = np.random.default_rng((self.seed, self.steps, self.team.rank))
        count, size = (FULL_BATCH, SIZE) if progress > FULL_FROM else (BATCH, CROP)
        images = batch(self.composer, rng, count // self.team.size, size)
        loss, vectors, codes = forward(self.model, images)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        self.team.mean([p.grad for p in self.model.parameters() if p.grad is not None])
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        revive = progress < 0.8 and self.steps % 4 == 0
        self.use.update(vectors, codes, revive, self.team)
        self.average.update(self.model)
        self.steps += 1
        return loss.item()

    def report(self, loss: float, pictures: int = 48) -> None:
        """Log how the averaged weights do on held-out scenes, and save."""
        model = VQModel(CONFIG).to(memory_format=torch.channels_last).eval()
        model.load_state_dict(self.average.weights)
        copies, decibels, used = evaluate(model, self.held_out[:pictures])
        write_sheet(self.work / "vq.png", self.held_out[:48], copies[:48])
        self.log(
            step=self.steps,
            minutes=self.budget.elapsed / 60,
            loss=loss,
            psnr=decibels,
            codes_used=used,
        )
        self.save()

    def run(self) -> None:
        due = time.monotonic() + training.SAVE_SECONDS
        loss = float("nan")
        while self.team.agree(self.budget.progress) < 1:
            value = self.step()
            loss = value if loss != loss else 0.98 * loss + 0.02 * value
            if self.team.rank == 0 and time.monotonic() > due:
                self.report(loss)
                due = time.monotonic() + training.SAVE_SECONDS
        if self.team.rank == 0:
            self.report(loss, len(self.held_out))


def train(team: training.Team, work: Path, archives: Path, minutes: float, seed: int) -> None:
    trainer = Trainer(team, work, archives, minutes, seed)
    trainer.resume()
    trainer.run()


def main() -> None:
    args = training.parse_arguments(__doc__, minutes=45)
    training.run_team(args.workers, train, args.work, args.archives, args.minutes, args.seed)


if __name__ == "__main__":
    main()
