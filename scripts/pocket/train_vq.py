"""Train the pocket model's picture tokenizer on composed scenes.

    python scripts/pocket/train_vq.py --work WORK --minutes 45 --workers 2 --start MODEL

Starts from the tokenizer of a model file, if one is given: with fewer codes than CODES each of them
is split in two. Writes WORK/vq.pt (resumable), WORK/vq.jsonl and the sheet WORK/vq.png (originals
above reconstructions).
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import training
from backgrounds import SIZE
from concepts import LEARNT
from data import Composer, make_composer
from patches import patch_contents
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.models.janus.vq import VQConfig, VQModel
from arrag_engine.models.pixels import to_uint8

CONFIG = VQConfig(
    base_channels=32,
    channel_multiplier=(1, 1, 2, 4),
    num_res_blocks=1,
    z_channels=64,
    codebook_size=2048,
    codebook_dim=8,
)
IDLE_BLOCKS = (
    "encoder.conv_blocks.0.res.0",
    "decoder.conv_blocks.2.res.1",
    "decoder.conv_blocks.3.res.0",
)
"""Residual blocks at high resolution that stay zero, so that they need not be computed while
training: in the same minutes the rest then sees nearly twice as many pictures."""
SCENES, MIXES = 6, 2
"""Pictures of a step: whole scenes (crops would leave the group norms with other statistics), and
some with the left half of one scene and the right half of another, for `forward`'s consistency."""
LR = 1e-3
SQUARED, COMMITMENT, CONSISTENCY = 8.0, 0.25, 0.25
"""Weights in the loss; see `forward`."""
LOOSE = 0.15
MIX = {"learnt": 0.4, "any": 0.35, "style": 0.25}
"""Share of scenes of what the decoder learns, of any concept, and of any in the second style."""
HELD_OUT_SEED = 10_000_000
CODEBOOK = "quantize.embedding.weight"


def make_mix(archives: Path, split: str, loose: float) -> dict[str, Composer]:
    """A composer for each part of MIX."""
    return {
        "learnt": make_composer(archives, LEARNT, "fluent", split, loose),
        "any": make_composer(archives, style="fluent", split=split, loose=loose),
        "style": make_composer(archives, style="google", split=split, loose=loose),
    }


def skip_idle(model: VQModel) -> None:
    """Make the idle blocks zero and cheap: their input is what they would compute anyway."""
    for name in IDLE_BLOCKS:
        idle = model.get_submodule(name)
        nn.init.zeros_(idle.conv2.weight)
        nn.init.zeros_(idle.conv2.bias)
        idle.forward = lambda x: x


class CodeUse:
    """Codebook as a running mean of the vectors assigned to each code; unused codes start anew."""

    def __init__(self, codebook: nn.Embedding, decay: float = 0.99) -> None:
        self.codebook = codebook
        self.decay = decay
        self.count = torch.ones(codebook.num_embeddings)
        self.total = F.normalize(codebook.weight.detach(), dim=-1)

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor, revive: bool, team: training.Team) -> None:
        """Take in vectors [N, dim] assigned to codes [N]."""
        hits = torch.bincount(codes, minlength=len(self.count)).float()
        sums = torch.zeros_like(self.total).index_add_(0, codes, vectors)
        team.mean([hits, sums])
        self.count.lerp_(hits, 1 - self.decay)
        self.total.lerp_(sums, 1 - self.decay)
        dead = (self.count < 0.01).nonzero().flatten() if revive else codes[:0]
        if len(dead):
            dead = dead[: len(vectors) // 8]
            fresh = vectors[torch.randperm(len(vectors))[: len(dead)]]
            self.total[dead], self.count[dead] = fresh * 0.2, 0.2
        team.follow(self.total, self.count)
        self.codebook.weight.copy_(F.normalize(self.total, dim=-1))


def to_images(pixels: list[np.ndarray]) -> Tensor:
    """[B, 3, H, W] in [-1, 1], channels last in memory, of uint8 pictures [H, W, 3]."""
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return images.float() / 127.5 - 1


def draw_batch(mix: dict[str, Composer], rng: np.random.Generator) -> list[np.ndarray]:
    """SCENES + MIXES pictures [SIZE, SIZE, 3] uint8."""
    chosen = rng.choice(list(MIX), p=list(MIX.values()), size=SCENES)
    scenes = [mix[str(part)].scene(rng).pixels for part in chosen]
    half = SIZE // 2
    for left, right in zip(scenes[0 : 2 * MIXES : 2], scenes[1 : 2 * MIXES : 2], strict=True):
        scenes.append(np.concatenate((left[:, :half], right[:, half:]), axis=1))
    return scenes


def held_out_scenes(archives: Path, count: int) -> dict[str, Tensor]:
    """`count` scenes that nothing is trained on, for each part of MIX."""
    mix = make_mix(archives, "held_out", 0.0)
    rng = np.random.default_rng(HELD_OUT_SEED)
    return {part: to_images([c.scene(rng).pixels for _ in range(count)]) for part, c in mix.items()}


def edge_loss(a: Tensor, b: Tensor) -> Tensor:
    """L1 between the horizontal and vertical differences of a and b, at two scales."""
    loss = a.new_zeros(())
    for _ in range(2):
        delta = a - b
        loss = loss + (delta.diff(dim=2).abs().mean() + delta.diff(dim=3).abs().mean())
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return loss


def forward(model: VQModel, pixels: list[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, vectors [N, dim] and codes [N] of a batch; gradients pass straight through.

    Consistency draws the vectors of patches with the same pixels together: how a patch is coded
    should hang on the patch, less on what else is in the picture, for a decoder has to guess that.
    """
    images = to_images(pixels)
    vectors = model.features(images)
    codes = model.nearest(vectors.detach())
    chosen = model.quantize(codes).detach()
    through = vectors + (chosen - vectors).detach()
    output = model.decoder(model.post_quant_conv(through.permute(0, 3, 1, 2)))
    delta = output - images
    loss = delta.abs().mean() + SQUARED * delta.square().mean() + edge_loss(output, images)
    commitment = (vectors - chosen).square().sum(-1).mean()
    flat = vectors.flatten(0, 2)
    contents, number = np.unique(patch_contents(np.stack(pixels)), return_inverse=True)
    number = torch.from_numpy(number.reshape(-1))
    with torch.no_grad():
        mean = flat.new_zeros(len(contents), flat.shape[1]).index_add_(0, number, flat)
        mean = F.normalize(mean, dim=-1)[number]
    spread = (flat - mean).square().sum(-1).mean()
    loss = loss + COMMITMENT * commitment + CONSISTENCY * spread
    return loss, flat.detach(), codes.flatten()


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


def start_from(model: VQModel, path: Path) -> None:
    """Take over the tokenizer of a model file, its codebook grown to the size of the model's.

    Codes that are repeated get a little noise, so that training parts the copies.
    """
    weights = load_checkpoint(path, torch.float32).model.vq.state_dict()
    rows = F.normalize(weights[CODEBOOK], dim=-1)
    times = model.config.codebook_size // len(rows)
    if times > 1:
        rows = rows.repeat(times, 1) + 0.02 * torch.randn(times * len(rows), rows.shape[1])
    model.load_state_dict(weights | {CODEBOOK: F.normalize(rows, dim=-1)})


class Trainer:
    def __init__(self, team: training.Team, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.team, self.work, self.seed = team, args.work, args.seed
        self.mix = make_mix(args.archives, "train", LOOSE)
        self.model = VQModel(CONFIG).to(memory_format=torch.channels_last)
        if args.start:
            start_from(self.model, args.start)
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
        self.budget = training.Budget(args.minutes)
        self.steps = 0
        self.log = training.Log(self.work / "vq.jsonl")
        self.held_out = held_out_scenes(args.archives, training.scaled(200, args.scale))

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
        """One update; every member draws its own scenes from (seed, step, rank)."""
        progress = self.team.agree(self.budget.progress)
        training.set_lr(self.optimizers, training.schedule(progress))
        rng = np.random.default_rng((self.seed, self.steps, self.team.rank))
        loss, vectors, codes = forward(self.model, draw_batch(self.mix, rng))
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

    def report(self, loss: float, pictures: int = 24) -> None:
        """Log how the averaged weights do on held-out scenes, and save."""
        model = VQModel(CONFIG).to(memory_format=torch.channels_last).eval()
        model.load_state_dict(self.average.weights)
        parts = {part: images[:pictures] for part, images in self.held_out.items()}
        results = {part: evaluate(model, images) for part, images in parts.items()}
        copies = torch.cat([result[0][:24] for result in results.values()])
        write_sheet(self.work / "vq.png", torch.cat([i[:24] for i in parts.values()]), copies)
        self.log(
            step=self.steps,
            minutes=self.budget.elapsed / 60,
            loss=loss,
            **{f"psnr_{part}": result[1] for part, result in results.items()},
            **{f"codes_used_{part}": result[2] for part, result in results.items()},
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
            self.report(loss, 200)


def train(team: training.Team, args: argparse.Namespace) -> None:
    trainer = Trainer(team, args)
    trainer.resume()
    trainer.run()


def main() -> None:
    parser = training.make_parser(__doc__, minutes=45)
    parser.add_argument("--start", type=Path, help="model file whose tokenizer to go on from")
    args = training.parse_arguments(parser)
    training.run_team(args.workers, train, args)


if __name__ == "__main__":
    main()
