"""Train the pocket model's decoder on scenes encoded by the trained tokenizer.

    python scripts/pocket/train_decoder.py --work WORK --minutes 60 --workers 2 --start MODEL

Needs WORK/vq.pt; goes on from the decoder of a model file, if one is given. Writes
WORK/tokens.npz, WORK/decoder.pt (resumable) and WORK/decoder.jsonl.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import training
from concepts import LEARNT
from data import EVENLY, make_composer
from tokenizer import vocabulary
from tokens import USAGE, Batches, TokenCache, encode_scenes, load_vq
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.grid import Grid
from arrag_engine.models.janus.model import JanusConfig, JanusPro
from arrag_engine.models.janus.vq import VQConfig
from arrag_engine.models.llama import LlamaConfig

GRID = Grid(12, 12)
BATCH = 16
CACHES = ("tokens.npz", "held_out.npz")
COUNTS = (200_000, 480)
"""Files of encoded scenes to train on and to test with, and how many are in them."""
LR_MATRICES, LR_REST = 2e-3, 1.5e-3
WORDS = "llama.embed_tokens.weight"
CODE_ROWS = ("gen_embed.weight", "gen_head.vision_head.weight", "gen_head.vision_head.bias")
DROP_PROMPT, DROP_WORD = 0.1, 0.03
MEASURED = 96
"""Held-out scenes that are measured on the way."""


def make_config(vq: VQConfig) -> JanusConfig:
    llama = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=256,
        intermediate_size=688,
        num_layers=4,
        num_heads=4,
        num_kv_heads=4,
        max_positions=1024,
    )
    return JanusConfig(llama, vq, GRID)


def initialize(model: JanusPro) -> None:
    """Small normal weights; what writes into the residual stream starts smaller with depth."""
    depth = model.config.llama.num_layers
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not name.startswith("vq."):
            output = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth) if output else 0.02)
    for layer in (0, 2):
        nn.init.xavier_uniform_(model.gen_aligner.layers[layer].weight, gain=0.3)
    # Codes that look alike start out alike, as inputs and as answers.
    codebook = model.vq.quantize.rows(torch.device("cpu"))
    model.gen_embed.weight.data.copy_(codebook * codebook.shape[1] ** 0.5)
    lift = torch.randn(codebook.shape[1], model.config.llama.hidden_size)
    answers = codebook @ lift / model.config.llama.hidden_size**0.5
    model.gen_head.vision_head.weight.data.copy_(answers)


def start_from(model: JanusPro, path: Path) -> None:
    """Take over the decoder of a model file, which may know other words and fewer codes.

    Words keep their vectors; codes beyond its own get those of the codes they were split from.
    """
    checkpoint = load_checkpoint(path, torch.float32)
    old, new = checkpoint.model.state_dict(), model.state_dict()
    times = model.config.vq.codebook_size // checkpoint.model.config.vq.codebook_size
    for name in (n for n in new if not n.startswith("vq.")):
        if name == WORDS:
            ids = checkpoint.prompt_encoder.tokenizer.get_vocab()
            for row, word in enumerate(vocabulary()):
                if word in ids:
                    new[name][row] = old[name][ids[word]]
        elif name in CODE_ROWS:
            new[name].copy_(torch.cat([old[name]] * times))
        else:
            new[name].copy_(old[name])


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Rows x[b, index[b, i]] of x [B, L, D] for index [B, I]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def image_loss(model: JanusPro, prompts: Tensor, lengths: Tensor, codes: Tensor) -> Tensor:
    """Mean cross-entropy (nats) of the codes [B, N] after prompts [B, T] of the given lengths.

    Each row's image follows its own prompt directly; what is left over on the right is padding,
    which nothing before it attends to.
    """
    width, size = prompts.shape[1], codes.shape[1]
    inputs = torch.cat((model.embed_text(prompts), model.embed_codes(codes[:, :-1])), dim=1)
    place = torch.arange(width + size - 1).expand(len(prompts), -1)
    gap = (width - lengths)[:, None]
    order = torch.where(place < lengths[:, None], place, (place + gap).clamp(max=width + size - 2))
    hidden = model.llama(pick(inputs, order))
    answers = (lengths - 1)[:, None] + torch.arange(size)
    logits = model.gen_head(pick(hidden, answers))
    return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())


class Trainer(training.Trainer):
    def __init__(self, team: training.Team, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        vq = load_vq(args.work / "vq.pt")
        train, held_out = (TokenCache.load(args.work / name) for name in CACHES)
        self.batches = Batches(train, DROP_PROMPT, DROP_WORD)
        self.held_out = Batches(held_out, 0, 0)
        self.scenes = len(train)
        model = JanusPro(make_config(vq.config))
        model.vq = vq
        initialize(model)
        if args.start:
            start_from(model, args.start)
        inner = [p for p in model.llama.layers.parameters() if p.ndim == 2]
        super().__init__("decoder", team, args, model, inner, (LR_MATRICES, LR_REST), 0.99)

    def loss(self, rng: np.random.Generator, progress: float) -> Tensor:
        """The scenes of step n are a function of (seed, n)."""
        epoch, first = divmod(self.steps * BATCH, self.scenes // BATCH * BATCH)
        order = np.random.default_rng((self.seed, epoch, 1)).permutation(self.scenes)
        mine = order[first : first + BATCH][self.team.rank :: self.team.size]
        dtype = training.fast_dtype(self.device)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return image_loss(self.model, *self.batches(mine, rng))

    @torch.no_grad()
    def measure(self, last: bool) -> dict[str, float]:
        """Bits per image token of the averaged weights on scenes never trained on."""
        scenes = min(len(self.held_out.codes) if last else MEASURED, len(self.held_out.codes))
        model = averaged_model(self.model, self.average)
        rng = np.random.default_rng(0)
        losses = []
        for first in range(0, scenes, 48):
            batch = self.held_out(np.arange(first, min(first + 48, scenes)), rng)
            losses.append(image_loss(model, *batch).item())
        return {
            "held_out_bits": float(np.mean(losses)) / math.log(2),
            "scenes_per_second": self.steps * BATCH / self.budget.elapsed,
        }


def averaged_model(model: JanusPro, average: training.Average) -> JanusPro:
    """A copy of `model` with the averaged weights."""
    copy = JanusPro(model.config).eval().requires_grad_(False)
    copy.load_state_dict(average.weights)
    return copy


def encode_part(team: training.Team, args: argparse.Namespace) -> None:
    """This member's share of the scenes; every member has generator seeds of its own."""
    vq = load_vq(args.work / "vq.pt")
    for name, split, count in zip(CACHES, ("train", "held_out"), COUNTS, strict=True):
        shares = {"shares": EVENLY} if split == "train" else {}
        composer = make_composer(args.archives, LEARNT, split=split, **shares)
        mine = training.scaled(count // team.size, args.scale, BATCH)
        part = encode_scenes(vq, composer, (args.seed, team.rank), mine)
        part.save(part_path(args.work, name, team.rank))


def part_path(work: Path, name: str, rank: int) -> Path:
    return work / f"part-{rank}-{name}"


def encode(args: argparse.Namespace) -> None:
    """Make the token caches, unless they are there."""
    if all((args.work / name).exists() for name in CACHES):
        return
    training.run_team(args.workers, encode_part, args)
    caches = [
        TokenCache.join([TokenCache.load(part_path(args.work, n, r)) for r in range(args.workers)])
        for n in CACHES
    ]
    usage = caches[0].usage()
    usage.save(args.work / USAGE)
    for name, cache in zip(CACHES, caches, strict=True):
        cache.settled(usage).save(args.work / name)


def train(team: training.Team, args: argparse.Namespace) -> None:
    trainer = Trainer(team, args)
    trainer.resume()
    trainer.run()


def main() -> None:
    parser = training.make_parser(__doc__, minutes=60)
    parser.add_argument("--start", type=Path, help="model file whose decoder to go on from")
    args = training.parse_arguments(parser)
    encode(args)
    training.run_team(args.workers, train, args)


if __name__ == "__main__":
    main()
