"""A second backbone, for the protocol: it fills several positions a step in an order that only the
picture tells, and its vocabulary, grid and prompt are its own."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from arrag_engine.grid import ANY_ORDER, Grid
from arrag_engine.index import KeySpec, PatchIndex, create_index
from arrag_engine.models.base import Prompt
from arrag_engine.settings import Sampling
from tests.tiny import tiny_source

GRID = Grid(5, 7)
CODES, DIM, WIDTH = 48, 6, 24
AROUND = KeySpec("ring-8", "zero", "codebook")


class ToyTokenizer:
    """Codes are flat patches of 4x4 pixels."""

    def __init__(self) -> None:
        rows = torch.randn(CODES, DIM, generator=torch.Generator().manual_seed(5))
        self.rows = nn.functional.normalize(rows, dim=-1)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean = nn.functional.avg_pool2d(images, 4).mean(1)
        codes = ((mean + 1) / 2 * (CODES - 1)).round().long().clamp(0, CODES - 1)
        return codes, self.rows[codes]

    def decode(self, codes: Tensor) -> Tensor:
        grey = (codes.float() / (CODES - 1) * 2 - 1)[:, None].expand(-1, 3, -1, -1)
        return nn.functional.interpolate(grey, scale_factor=4, mode="nearest")

    def codebook(self, device: torch.device) -> np.ndarray:
        return self.rows.numpy()


class ToyMasked(nn.Module):
    """One layer of attention over the prompt and the whole picture."""

    order = ANY_ORDER
    repeats = False
    picture_length = GRID.size
    grid = GRID
    vocab = CODES
    code_dim = DIM
    max_positions = 64
    hidden_size = WIDTH
    picture_start = 0
    vq = ToyTokenizer()
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(30, WIDTH)
        self.codes = nn.Embedding(CODES + 1, WIDTH)  # the last one: not known
        self.places = nn.Embedding(GRID.size, WIDTH)
        self.mix = nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Linear(WIDTH, CODES)
        self.passes = 0
        self.requires_grad_(False)

    def embed_codes(self, codes: Tensor) -> Tensor:
        return self.codes(codes)

    def open(self, ids: Tensor, hook=None) -> Tensor:
        return self.words(ids)

    def masked_logits(self, opened: Tensor, tokens: Tensor, known: Tensor, hook=None) -> Tensor:
        self.passes += 1
        pictures = self.codes(tokens.where(known, CODES)) + self.places.weight
        prompts = opened.repeat_interleave(len(tokens) // len(opened), dim=0)
        out = [self._alone(torch.cat(pair)) for pair in zip(prompts, pictures, strict=True)]
        return torch.stack(out)[:, -GRID.size :]

    def _alone(self, x: Tensor) -> Tensor:
        """One sequence [L, width] at a time: its bits do not depend on the batch."""
        q, k, v = self.mix(x).chunk(3, dim=-1)
        return self.head(x + torch.softmax(q @ k.T, dim=-1) @ v) * 2


class ToyEncoder:
    """One word, one id."""

    has_unknown = False

    def encode(self, text: str, called: str = "prompt") -> Prompt:
        ids = [len(word) % 29 for word in text.split()]
        return Prompt(text, ids, [29] * len(ids), [])


@dataclass(frozen=True)
class ToyLoaded:
    model: ToyMasked
    prompt_encoder: ToyEncoder = field(default_factory=ToyEncoder)
    name: str = "toy"
    fingerprint: str = "toy"
    sampling: Sampling = field(default_factory=lambda: Sampling(cfg=2.0))


def toy_index(spec: KeySpec = AROUND, images: int = 6) -> PatchIndex:
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, CODES, (images, GRID.size)).astype(np.uint16)
    sources = [tiny_source(i) for i in range(images)]
    return create_index(GRID, tokens, None, ToyMasked.vq.rows.numpy(), sources, spec)
