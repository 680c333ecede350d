"""The Llama decoder: a stack of layers that keeps nothing; keys and values travel in a KVCache.

Module names follow the official checkpoint keys (`language_model.model.*`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ops as default_ops


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of the decoder; fields the published configs leave out have Llama's defaults."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_positions: int = 16384

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


class KVCache:
    """Keys and values of one drawing.

    Rows of the batch may stand at different positions. Writing a position again replaces it, which
    is all that taking back a rejected guess needs.
    """

    def __init__(
        self,
        config: LlamaConfig,
        rows: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (config.num_layers, rows, config.num_kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def write(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Put k, v [rows, kv_heads, L, head_dim] at positions [rows, L]."""
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        self.keys[layer][rows, :, positions] = k.transpose(1, 2)
        self.values[layer][rows, :, positions] = v.transpose(1, 2)

    def read(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, kv_heads, length, head_dim] of the first `length` positions."""
        return self.keys[layer, :, :, :length], self.values[layer, :, :, :length]


@dataclass(frozen=True)
class Span:
    """Where the L inputs of one pass stand in their sequences, worked out once for all layers."""

    positions: Tensor
    """[rows, L]."""
    length: int
    """Sequence positions in use after the pass, over all rows."""
    rotary: tuple[Tensor, Tensor]
    """Cosine and sine [rows, 1, L, head_dim]."""
    mask: Tensor | None
    """[rows, 1, L, length], True where attending is allowed; None = everything up to oneself."""
    causal: bool


def rotary_angles(config: LlamaConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [rows, 1, L, head_dim] (float32) for positions [rows, L]."""
    half = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32)
    frequency = 1.0 / config.rope_theta ** (half / config.head_dim)
    angle = positions.float()[:, None, :, None] * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of x [rows, heads, L, head_dim]; pairs are (i, i + head_dim/2)."""
    cos, sin = (t.to(x.dtype) for t in rotary)
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def make_span(config: LlamaConfig, starts: Sequence[int], count: int, device: torch.device) -> Span:
    """The span of `count` inputs per row, from sequence position starts[row] on."""
    first = torch.tensor(starts, device=device)
    positions = first[:, None] + torch.arange(count, device=device)  # [rows, L]
    length = max(starts) + count
    together = len(set(starts)) == 1
    mask = None
    if not together or (count > 1 and starts[0] > 0):
        mask = torch.arange(length, device=device) <= positions[:, None, :, None]
    causal = together and count > 1 and starts[0] == 0
    return Span(positions, length, rotary_angles(config, positions), mask, causal)


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig, ops: Any) -> None:
        super().__init__()
        self.config = config
        kv_size = config.num_kv_heads * config.head_dim
        self.q_proj = ops.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = ops.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = ops.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = ops.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, span: Span, cache: KVCache | None, layer: int) -> Tensor:
        rows, count, _ = x.shape
        split = (rows, count, -1, self.config.head_dim)
        q, k, v = (  # [rows, heads, L, head_dim]
            proj(x).view(split).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, span.rotary), rotate(k, span.rotary)
        if cache is not None:
            cache.write(layer, span.positions, k, v)
            k, v = cache.read(layer, span.length)
        group = self.config.num_heads // self.config.num_kv_heads
        if group > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=span.mask, is_causal=span.causal)
        return self.o_proj(out.transpose(1, 2).reshape(x.shape))


class MLP(nn.Module):
    def __init__(self, config: LlamaConfig, ops: Any) -> None:
        super().__init__()
        self.gate_proj = ops.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = ops.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = ops.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig, ops: Any) -> None:
        super().__init__()
        self.self_attn = Attention(config, ops)
        self.mlp = MLP(config, ops)
        self.input_layernorm = ops.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = ops.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, span: Span, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), span, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Token embedding, decoder layers and final norm; prediction heads live with the model."""

    def __init__(self, config: LlamaConfig, ops: Any = default_ops) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = ops.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, ops) for _ in range(config.num_layers))
        self.norm = ops.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, x: Tensor, starts: Sequence[int] | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Hidden states [rows, L, hidden] after the final norm.

        Args:
            x: Input embeddings [rows, L, hidden].
            starts: Sequence position of each row's first input; all 0 when absent.
            cache: Holds everything before `starts` and takes the keys and values of the inputs.
        """
        span = make_span(self.config, starts or [0] * len(x), x.shape[1], x.device)
        for i, layer in enumerate(self.layers):
            x = layer(x, span, cache, i)
        return self.norm(x)
