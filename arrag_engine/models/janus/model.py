"""Janus-Pro for drawing: Llama, the image-token embedding and head, and the VQ tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...grid import RASTER, Grid
from .. import ops as default_ops
from ..hooks import DrawingHook
from ..llama import KVCache, Llama, LlamaConfig
from ..ops import rowwise
from ..packed import PackedLinear, host_ops, packed_ops
from ..picture_model import LOGIT_COPIES, PictureModel
from .vq import VQConfig, VQModel


@dataclass(frozen=True)
class JanusConfig:
    """Sizes of a whole drawing model."""

    llama: LlamaConfig
    vq: VQConfig
    grid: Grid
    aligner_widths: tuple[int, ...] = ()
    """Of the image-token embedding, and of what each linear layer of its aligner puts out, the last
    one the decoder's width; () becomes the published models' (code dim, hidden, hidden)."""
    head_width: int = 0
    """Inner width of the generation head; 0 becomes the decoder's."""

    def __post_init__(self) -> None:
        hidden = self.llama.hidden_size
        if not self.aligner_widths:
            widths = (self.vq.codebook_dim, hidden, hidden)
            object.__setattr__(self, "aligner_widths", widths)
        if not self.head_width:
            object.__setattr__(self, "head_width", hidden)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures it draws."""
        return self.grid.height * self.vq.patch_size, self.grid.width * self.vq.patch_size

    @property
    def decoder(self) -> LlamaConfig:
        return self.llama

    def code_head(self, ops: Any) -> nn.Module:
        """A new head from hidden states to logits of picture codes."""
        return GenHead(self, ops)


NOISE_AHEAD = 64
"""Positions whose noise is held, at the most."""
NOISE_BYTES = 40 * 2**20
"""What noise passes through while a GPU makes it."""


class GenAligner(nn.Module):
    """Lifts an 8-dimensional image-token embedding to the decoder's width: linear layers with a
    GELU between them."""

    def __init__(self, config: JanusConfig, ops: Any) -> None:
        super().__init__()
        lift, *mixes = (ops.Linear(a, b) for a, b in pairwise(config.aligner_widths))
        self.layers = nn.Sequential(lift)
        for mix in mixes:
            self.layers.extend((nn.GELU(), mix))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        for i in range(2, len(self.layers), 2):
            x = self.layers[i](rowwise(F.gelu, x))
        return x


class GenHead(nn.Module):
    """Logits over the image vocabulary from a hidden state."""

    def __init__(self, config: JanusConfig, ops: Any) -> None:
        super().__init__()
        self.output_mlp_projector = ops.Linear(config.llama.hidden_size, config.head_width)
        self.vision_head = ops.Linear(config.head_width, config.vq.codebook_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.vision_head(rowwise(F.gelu, self.output_mlp_projector(x)))


class JanusPro(PictureModel):
    """The part of Janus-Pro that draws. It keeps no state of a picture being drawn.

    The VQ tokenizer always runs in float32: it is 5 % of the weights, and in lower precision it
    assigns other codes than the ones an index was built with.
    """

    config: JanusConfig
    vq: VQModel
    order = RASTER

    def __init__(
        self, config: JanusConfig, ops: Any = default_ops, storage: torch.dtype | None = None
    ) -> None:
        """An empty model.

        Args:
            ops: Layers to build from.
            storage: What the linear layers of decoder and head store their weights in (see
                `packed.py`), where it is not what they compute in. The VQ then stays on the CPU.
        """
        super().__init__()
        self.config = config
        decoder_ops = ops if storage is None else packed_ops(ops, storage)
        self.llama = Llama(config.llama, decoder_ops)
        self.gen_embed = ops.Embedding(config.vq.codebook_size, config.aligner_widths[0])
        self.gen_aligner = GenAligner(config, ops)
        self.gen_head = GenHead(config, decoder_ops)
        self.vq = VQModel(config.vq, ops if storage is None else host_ops(ops))

    @property
    def hidden_size(self) -> int:
        """Width of the decoder."""
        return self.config.llama.hidden_size

    @property
    def max_positions(self) -> int:
        """Tokens of prompt and picture that fit together."""
        return self.config.llama.max_positions

    @property
    def code_head(self) -> nn.Module:
        """From hidden states to logits of picture codes."""
        return self.gen_head

    @property
    def final_norm(self) -> nn.Module:
        """The last layer of the decoder."""
        return self.llama.norm

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
        return self.llama.embed_tokens(ids).to(self.dtype)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Embeddings [..., hidden] of image codes [...]: `gen_aligner(gen_embed[code])`."""
        return self.gen_aligner(self.gen_embed(codes))

    def logits(
        self,
        x: Tensor,
        starts: Sequence[int] | Tensor | None = None,
        cache: KVCache | None = None,
        hook: DrawingHook | None = None,
    ) -> Tensor:
        """Image-token logits [rows, L, codes] after inputs x [rows, L, hidden]."""
        return self.predict(self.llama(x, starts, cache, hook), hook)

    def predict(self, hidden: Tensor, hook: DrawingHook | None = None) -> Tensor:
        """Image-token logits [..., codes] of hidden states [..., hidden]."""
        return self.gen_head(hidden) if hook is None else hook.predict(hidden, self.gen_head)

    def new_cache(self, rows: int, capacity: int, device: torch.device) -> KVCache:
        return KVCache(self.config.llama, rows, capacity, device, self.dtype)

    def prefill(
        self,
        x: Tensor,
        cache: KVCache,
        copies: int = 1,
        hook: DrawingHook | None = None,
        first: int = 0,
    ) -> Tensor:
        """Run inputs x [rows, T, hidden] from position 0 on into rows * copies sequences of a
        cache, from sequence `first` on; the last hidden states [rows, hidden]. Each row runs once
        and is copied."""
        rows, length, _ = x.shape
        once = self.new_cache(rows, length, x.device)
        hidden = self.llama(x, None, once, hook)
        for whole, part in ((cache.keys, once.keys), (cache.values, once.values)):
            whole[:, first : first + rows * copies, :, :length] = part.repeat_interleave(
                copies, dim=1
            )
        return hidden[:, -1]

    def drawing_bytes(self, rows: int, capacity: int, window: int) -> int:
        """About the memory that drawing tokens takes besides the weights.

        Keys and values of `rows` sequences of `capacity` positions, and the larger of two: once
        more those of the prompt, each stream once; or what a pass makes of its float32 logits, the
        noise that is held ahead of need, and the largest copy of packed weights. Pixels are not in
        it: see `picture_bytes`.
        """
        c = self.config.llama
        position = 2 * c.num_layers * c.num_kv_heads * c.head_dim * self.dtype.itemsize
        prompt = min(rows, 2) * (capacity - self.config.grid.size) * position
        places = LOGIT_COPIES * min(window, self.config.grid.size) + NOISE_AHEAD
        logits = rows * places * self.config.vq.codebook_size
        packed = (layer for layer in self.modules() if isinstance(layer, PackedLinear))
        copied = max((layer.copied for layer in packed), default=0)
        tokens = copied * self.dtype.itemsize + 4 * logits + NOISE_BYTES
        return rows * capacity * position + max(prompt, tokens)
