"""Train pocket-o's decoder: scenes with some of their codes masked, of which it predicts those.

    python scripts/pocket/showo_decoder.py --work WORK --minutes 150 --workers 2
    python scripts/pocket/showo_decoder.py --work WORK --minutes 4 --device cuda --batch 256

Needs WORK/showo-vq.pt and the pools `decoder` and `decoder_held_out`. Writes the scenes as codes
(WORK/showo-*.npz), WORK/showo-decoder.pt (resumable) and WORK/showo-decoder.jsonl.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import training
from pool import Pool, to_images
from showo_vq import CONFIG as VQ
from showo_vq import load_vq
from tokenizer import SPECIAL_SHOWO, tokenizer_json, vocabulary
from tokens import USAGE, TokenCache
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine.grid import Grid
from arrag_engine.models.showo.model import SPECIAL, ShowO, ShowOConfig
from arrag_engine.models.showo.phi import PhiConfig
from arrag_engine.models.showo.prompt import PromptEncoder
from arrag_engine.models.showo.vq import code_vectors
from arrag_engine.models.tokenizing import UNKNOWN

GRID = Grid(12, 12)
MAX_TEXT = 31
WORDS = vocabulary(SPECIAL_SHOWO)
CONFIG = ShowOConfig(
    PhiConfig(
        vocab_size=len(WORDS) + len(SPECIAL) + VQ.codebook_size + 1,
        hidden_size=192,
        intermediate_size=640,
        num_layers=6,
        num_heads=6,
        num_kv_heads=6,
        head_dim=32,
        rotary_dim=16,
        max_positions=512,
    ),
    VQ,
    GRID,
    MAX_TEXT,
)
NAME = "showo-decoder"
CACHES = {"decoder": "showo-tokens.npz", "decoder_held_out": "showo-held-out.npz"}
RATES = (2e-3, 1.5e-3)
BATCH = 16
DROP_PROMPT, DROP_WORD = 0.1, 0.03
MEASURED = 96
"""Held-out scenes that are measured on the way."""


@torch.inference_mode()
def encode(work: Path, device: torch.device) -> None:
    """Make the token caches, unless they are there; every content has one code in them."""
    if all((work / name).exists() for name in CACHES.values()):
        return
    vq = load_vq(work / "showo-vq.pt", device)
    caches = {}
    for name, file in CACHES.items():
        pool = Pool.load(work / f"pool-{name}")
        codes = [
            vq.encode(to_images(part.to(device)))[0].flatten(1) for part in pool.pixels.split(64)
        ]
        tokens = torch.cat(codes).cpu().numpy().astype(np.uint16)
        caches[file] = TokenCache(pool.captions, tokens, pool.contents.numpy().view(np.uint64))
    usage = caches[CACHES["decoder"]].usage()
    usage.save(work / USAGE)
    for file, cache in caches.items():
        cache.settled(usage).save(work / file)


@dataclass(frozen=True)
class Scenes:
    """Encoded scenes on a device."""

    codes: Tensor
    """[scenes, N]."""
    texts: Tensor
    """[scenes, T] ids of the captions, with pads on the left."""
    blank: Tensor
    """[T] ids of no caption."""
    unknown: int
    """Id of a word that is not known."""

    def __len__(self) -> int:
        return len(self.codes)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Scenes:
        cache = TokenCache.load(path)
        encoder = PromptEncoder(tokenizer_json(SPECIAL_SHOWO), CONFIG.vocabulary, MAX_TEXT)
        different = {text: encoder.encode(text) for text in set(cache.captions)}
        width = max(len(prompt.ids) for prompt in different.values())
        pad = CONFIG.vocabulary.special("pad")

        def padded(ids: list[int]) -> list[int]:
            return [pad] * (width - len(ids)) + ids

        texts = torch.tensor([padded(different[text].ids) for text in cache.captions])
        nothing = [i for i in next(iter(different.values())).unconditional if i != pad]
        blank = torch.tensor(padded(nothing))
        unknown = encoder.tokenizer.token_to_id(UNKNOWN)
        codes = torch.from_numpy(cache.codes.astype(np.int64))
        return cls(codes.to(device), texts.to(device), blank.to(device), unknown)

    def texts_of(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Ids [B, T] of captions, some without their words, some with a word made unknown."""
        texts, device = self.texts[rows], self.codes.device
        chance = torch.rand(texts.shape, generator=generator, device=device)
        is_word = (texts < len(WORDS)) & (texts >= len(SPECIAL_SHOWO))
        texts = texts.masked_fill(is_word & (chance < DROP_WORD), self.unknown)
        dropped = torch.rand(len(rows), 1, generator=generator, device=device) < DROP_PROMPT
        return torch.where(dropped, self.blank, texts)


def masked_loss(model: ShowO, texts: Tensor, codes: Tensor, known: Tensor) -> Tensor:
    """Mean cross-entropy in nats of codes [B, N] that are not known [B, N], after texts [B, T]."""
    hidden = model.whole_states(texts, codes, known)
    logits = model.predict(hidden[:, texts.shape[1] + 1 : -1])
    return F.cross_entropy(logits[~known].float(), codes[~known])


def random_known(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Masks [count, N] of known tokens, as many as the cosine schedule has at a random time."""
    time = torch.rand(count, 1, generator=generator, device=device)
    masked = (GRID.size * torch.cos(time * math.pi / 2)).round().clamp(min=1)
    order = torch.rand(count, GRID.size, generator=generator, device=device).argsort(1).argsort(1)
    return order >= masked


def initialize(model: ShowO) -> None:
    """Small normal weights; what writes into the residual stream starts smaller with depth."""
    depth = CONFIG.phi.num_layers
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not name.startswith("vq."):
            output = name.endswith(("dense.weight", "fc2.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth) if output else 0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    # Codes that look alike start out alike, as inputs and as answers.
    vectors = code_vectors(torch.arange(VQ.codebook_size), VQ.bits)
    for rows in (
        model.phi.embed_tokens.weight.data[CONFIG.vocabulary.first_code : -1],
        model.head.weight.data,
    ):
        rows += 0.02 * vectors @ torch.randn(VQ.bits, CONFIG.phi.hidden_size) / VQ.bits**0.5


class DecoderTrainer(training.Trainer):
    def __init__(self, team: training.Team, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        device = torch.device(args.device)
        model = ShowO(CONFIG)
        initialize(model)
        model.vq.requires_grad_(False)
        self.drawing = nn.ModuleDict({"phi": model.phi, "head": model.head}).to(device)
        self.whole = model.to(device)
        inner = [p for p in model.phi.layers.parameters() if p.ndim == 2]
        super().__init__(NAME, team, args, self.drawing, inner, RATES, 0.998)
        self.scenes, self.held_out = (Scenes.load(args.work / f, device) for f in CACHES.values())
        self.batch = args.batch

    def loss(self, rng: np.random.Generator, progress: float) -> Tensor:
        seed = int(rng.integers(2**62))
        generator = torch.Generator(self.device).manual_seed(seed)
        rows = torch.from_numpy(rng.integers(len(self.scenes), size=self.batch)).to(self.device)
        texts = self.scenes.texts_of(rows, generator)
        known = random_known(len(rows), generator, self.device)
        dtype = training.fast_dtype(self.device)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return masked_loss(self.whole, texts, self.scenes.codes[rows], known)

    @torch.no_grad()
    def measure(self, last: bool) -> dict[str, float]:
        """Bits of a masked token of held-out scenes, by the averaged weights."""
        count = len(self.held_out) if last else min(MEASURED, len(self.held_out))
        model = ShowO(CONFIG).to(self.device).eval()
        nn.ModuleDict({"phi": model.phi, "head": model.head}).load_state_dict(self.average.weights)
        generator = torch.Generator(self.device).manual_seed(0)
        losses = []
        for rows in torch.arange(count, device=self.device).split(48):
            known = random_known(len(rows), generator, self.device)
            codes, texts = self.held_out.codes[rows], self.held_out.texts[rows]
            losses.append(masked_loss(model, texts, codes, known).item())
        return {"held_out_bits": float(np.mean(losses)) / math.log(2)}


def train(team: training.Team, args: argparse.Namespace) -> None:
    trainer = DecoderTrainer(team, args)
    trainer.resume()
    trainer.run()


def main() -> None:
    parser = training.make_parser(__doc__ or "", minutes=150)
    training.add_device(parser, BATCH)
    args = training.parse_arguments(parser)
    encode(args.work, torch.device(args.device))
    training.run_team(args.workers, train, args)


if __name__ == "__main__":
    main()
