"""Janus-Pro for drawing: Llama, the image-token embedding and head, and the VQ tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ops as default_ops
from .grid import Grid
from .llama import Augmentation, KVCache, Llama, LlamaConfig
from .ops import rowwise
from .vq import VQConfig, VQModel


@dataclass(frozen=True)
class JanusConfig:
    """Sizes of a whole drawing model."""

    llama: LlamaConfig
    vq: VQConfig
    grid: Grid

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures it draws."""
        return self.grid.height * self.vq.patch_size, self.grid.width * self.vq.patch_size


VQ_MAPS = 4
"""Feature maps at full size that the VQ holds at once in its widest place."""


class GenAligner(nn.Module):
    """Lifts an 8-dimensional image-token embedding to the decoder's width."""

    def __init__(self, code_dim: int, hidden: int, ops: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ops.Linear(code_dim, hidden), nn.GELU(), ops.Linear(hidden, hidden)
        )

    def forward(self, x: Tensor) -> Tensor:
        lift, _, mix = self.layers
        return mix(rowwise(F.gelu, lift(x)))


class GenHead(nn.Module):
    """Logits over the image vocabulary from a hidden state."""

    def __init__(self, hidden: int, vocab: int, ops: Any) -> None:
        super().__init__()
        self.output_mlp_projector = ops.Linear(hidden, hidden)
        self.vision_head = ops.Linear(hidden, vocab)

    def forward(self, x: Tensor) -> Tensor:
        return self.vision_head(rowwise(F.gelu, self.output_mlp_projector(x)))


class JanusPro(nn.Module):
    """The part of Janus-Pro that draws. It keeps no state of a picture being drawn.

    The VQ tokenizer always runs in float32: it is 5 % of the weights, and in lower precision it
    assigns other codes than the ones an index was built with.
    """

    def __init__(self, config: JanusConfig, ops: Any = default_ops) -> None:
        super().__init__()
        self.config = config
        hidden = config.llama.hidden_size
        self.llama = Llama(config.llama, ops)
        self.gen_embed = ops.Embedding(config.vq.codebook_size, config.vq.codebook_dim)
        self.gen_aligner = GenAligner(config.vq.codebook_dim, hidden, ops)
        self.gen_head = GenHead(hidden, config.vq.codebook_size, ops)
        self.vq = VQModel(config.vq, ops)

    @property
    def dtype(self) -> torch.dtype:
        """What the decoder computes in."""
        return self.llama.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie (all of them, unless ComfyUI keeps some on the CPU)."""
        return self.llama.norm.weight.device

    def embed_text(self, ids: Tensor) -> Tensor:
        """Embeddings [..., hidden] of text ids [...]."""
        return self.llama.embed_tokens(ids)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Embeddings [..., hidden] of image codes [...]: `gen_aligner(gen_embed[code])`."""
        return self.gen_aligner(self.gen_embed(codes))

    def embed_candidates(self, codes: Tensor) -> Tensor:
        """Embeddings [..., hidden] of retrieved codes [...]; zero where the code is -1, nothing."""
        found = (codes >= 0)[..., None]
        embedded = self.embed_codes(codes.clamp(min=0))
        return embedded * found.to(embedded.dtype)

    def logits(
        self,
        x: Tensor,
        starts: Sequence[int] | None = None,
        cache: KVCache | None = None,
        extra: Augmentation | None = None,
    ) -> Tensor:
        """Image-token logits [rows, L, codes] after inputs x [rows, L, hidden]."""
        return self.predict(self.llama(x, starts, cache, extra), extra)

    def predict(self, hidden: Tensor, extra: Augmentation | None = None) -> Tensor:
        """Image-token logits [..., codes] of hidden states [..., hidden].

        An adapter's own head moves them by its strength: at 1 they are the head's alone.
        """
        if extra is None or extra.head is None:
            return self.gen_head(hidden)
        if extra.strength == 1:
            return extra.head(hidden)
        return self.gen_head(hidden).lerp(extra.head(hidden), extra.strength)

    def new_cache(self, rows: int, capacity: int, device: torch.device) -> KVCache:
        return KVCache(self.config.llama, rows, capacity, device, self.dtype)

    def picture_bytes(self, count: int = 1) -> int:
        """About the memory that `count` pictures at once take on their way through the VQ."""
        height, width = self.config.image_size
        channels = self.config.vq.base_channels * self.config.vq.channel_multiplier[0]
        return 4 * VQ_MAPS * count * height * width * channels  # float32

    def drawing_bytes(self, rows: int, capacity: int, window: int) -> int:
        """About the memory that drawing takes besides the weights.

        Keys and values of `rows` sequences of `capacity` positions, the float32 logits of a pass
        (again for guidance and for the distribution), and a picture's way through the VQ.
        """
        c = self.config.llama
        cache = 2 * c.num_layers * rows * c.num_kv_heads * capacity * c.head_dim
        logits = 3 * rows * window * self.config.vq.codebook_size
        return cache * self.dtype.itemsize + 4 * logits + self.picture_bytes()
