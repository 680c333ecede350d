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
from .llama import KVCache, Llama, LlamaConfig
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


class GenAligner(nn.Module):
    """Lifts an 8-dimensional image-token embedding to the decoder's width."""

    def __init__(self, code_dim: int, hidden: int, ops: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ops.Linear(code_dim, hidden), nn.GELU(), ops.Linear(hidden, hidden)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class GenHead(nn.Module):
    """Logits over the image vocabulary from a hidden state."""

    def __init__(self, hidden: int, vocab: int, ops: Any) -> None:
        super().__init__()
        self.output_mlp_projector = ops.Linear(hidden, hidden)
        self.vision_head = ops.Linear(hidden, vocab)

    def forward(self, x: Tensor) -> Tensor:
        return self.vision_head(F.gelu(self.output_mlp_projector(x)))


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

    def logits(
        self, x: Tensor, starts: Sequence[int] | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Image-token logits [rows, L, codes] after inputs x [rows, L, hidden]."""
        return self.gen_head(self.llama(x, starts, cache))

    def new_cache(self, rows: int, capacity: int, device: torch.device) -> KVCache:
        return KVCache(self.config.llama, rows, capacity, device, self.dtype)

    def cache_bytes(self, rows: int, capacity: int) -> int:
        """Bytes that `new_cache` will take."""
        c = self.config.llama
        elements = 2 * c.num_layers * rows * c.num_kv_heads * capacity * c.head_dim
        return elements * self.dtype.itemsize
