"""The Llama decoder: a stack of layers that keeps nothing; keys and values travel in a KVCache.

A `LayerHook` may change a pass; the layers themselves never change.

Module names follow the official checkpoint keys (`language_model.model.*`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import ops as default_ops
from .hooks import LayerHook
from .ops import rowwise


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
    head_dim: int = 0
    """Width of a head; 0 becomes hidden_size / num_heads, as in every published model."""

    def __post_init__(self) -> None:
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)

    @property
    def query_size(self) -> int:
        """Width of all heads' queries together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all heads' keys, or values, together."""
        return self.num_kv_heads * self.head_dim

    @property
    def norm_eps(self) -> float:
        return self.rms_norm_eps


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

    @property
    def capacity(self) -> int:
        """Sequence positions there is room for."""
        return self.keys.shape[3]

    def write(self, layer: int, span: Span, k: Tensor, v: Tensor) -> None:
        """Put k, v [rows, kv_heads, L, head_dim] at the span's positions."""
        for cache, new in ((self.keys[layer], k), (self.values[layer], v)):
            if span.together:
                assert span.starts is not None
                first = span.starts[0]
                cache[:, :, first : first + new.shape[2]] = new
            else:
                rows = torch.arange(len(new), device=new.device)[:, None]
                cache[rows, :, span.positions] = new.transpose(1, 2)

    def read(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, kv_heads, length, head_dim] of the first `length` positions."""
        return self.keys[layer, :, :, :length], self.values[layer, :, :, :length]


@dataclass(frozen=True)
class Span:
    """Where the L inputs of one pass stand in their sequences, worked out once for all layers."""

    starts: Sequence[int] | None
    """Sequence position of each row's first input; None where only the device knows them."""
    positions: Tensor
    """[rows, L]."""
    length: int
    """Sequence positions that the pass reads, over all rows: those in use after it, or, where only
    the device knows them, all there is room for."""
    rotary: tuple[Tensor, Tensor]
    """Cosine and sine [rows, 1, L, head_dim]."""

    padding: Sequence[int] | None = None
    """How many inputs at the beginning of each row are attended by nobody but themselves."""

    @property
    def together(self) -> bool:
        """Whether all rows stand at the same position."""
        return self.starts is not None and len(set(self.starts)) == 1

    @cached_property
    def runs(self) -> list[slice]:
        """Rows after each other that stand at the same position."""
        assert self.starts is not None
        ends = [*accumulate(len(list(rows)) for _, rows in groupby(self.starts))]
        return [slice(a, b) for a, b in pairwise([0, *ends])]

    @cached_property
    def mask(self) -> Tensor:
        """[rows, 1, L, length], True where attending is allowed: everything up to oneself."""
        places = torch.arange(self.length, device=self.positions.device)
        own = self.positions[:, None, :, None]
        if self.padding is None:
            return places <= own
        begun = places >= places.new_tensor(self.padding)[:, None, None, None]
        return (places <= own) & begun | (places == own)


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


def make_span(
    config: LlamaConfig,
    starts: Sequence[int] | Tensor,
    count: int,
    device: torch.device,
    padding: Sequence[int] | None = None,
    capacity: int = 0,
) -> Span:
    """The span of `count` inputs per row, from sequence position starts[row] on.

    The first padding[row] positions of a row are attended by nobody but themselves.

    Args:
        starts: A tensor [rows] makes a span of fixed shape, which no number on the host decides.
        capacity: Sequence positions that such a span reads.
    """
    if isinstance(starts, Tensor):
        positions = starts[:, None] + torch.arange(count, device=device)  # [rows, L]
        return Span(None, positions, capacity, rotary_angles(config, positions))
    first = torch.tensor(starts, device=device)
    positions = first[:, None] + torch.arange(count, device=device)
    rotary = rotary_angles(config, positions)
    return Span(starts, positions, max(starts) + count, rotary, padding)


def attend(q: Tensor, k: Tensor, v: Tensor, span: Span) -> Tensor:
    """Causal attention of q [rows, heads, L, head_dim] over keys and values [.., length, ..]."""
    count = q.shape[2]
    if span.padding is None and span.starts is not None:
        if span.together and (count == 1 or span.starts[0] == 0):
            return F.scaled_dot_product_attention(q, k, v, is_causal=count > 1)
        if q.device.type == "cpu" and not torch.is_grad_enabled():
            return attend_one_by_one(q, k, v, span)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=span.mask)


def attend_one_by_one(q: Tensor, k: Tensor, v: Tensor, span: Span) -> Tensor:
    """`attend` by the very calls that sequential decoding makes, one for each query.

    On the CPU a wider call rounds differently, and a picture would depend on its window and batch.
    """
    assert span.starts is not None
    out = torch.empty_like(q)
    for row in span.runs:
        for i in range(q.shape[2]):
            seen = slice(0, span.starts[row.start] + i + 1)
            out[row, :, i : i + 1] = F.scaled_dot_product_attention(
                q[row, :, i : i + 1], k[row, :, seen], v[row, :, seen]
            )
    return out


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig, ops: Any) -> None:
        super().__init__()
        self.config = config
        self.q_proj = ops.Linear(config.hidden_size, config.query_size, bias=False)
        self.k_proj = ops.Linear(config.hidden_size, config.kv_size, bias=False)
        self.v_proj = ops.Linear(config.hidden_size, config.kv_size, bias=False)
        self.o_proj = ops.Linear(config.query_size, config.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        span: Span,
        cache: KVCache | None,
        layer: int,
        hook: LayerHook | None = None,
    ) -> Tensor:
        rows, count, _ = x.shape
        split = (rows, count, -1, self.config.head_dim)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if hook is not None:
            q, v = hook.project(layer, x, q, v)
        q, k, v = (t.view(split).transpose(1, 2) for t in (q, k, v))  # [rows, heads, L, head_dim]
        q, k = rotate(q, span.rotary), rotate(k, span.rotary)
        if cache is not None:
            cache.write(layer, span, k, v)
            k, v = cache.read(layer, span.length)
        group = self.config.num_heads // self.config.num_kv_heads
        if group > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        out = attend(q, k, v, span)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: LlamaConfig, ops: Any) -> None:
        super().__init__()
        self.gate_proj = ops.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = ops.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = ops.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(rowwise(F.silu, self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig, ops: Any) -> None:
        super().__init__()
        self.self_attn = Attention(config, ops)
        self.mlp = MLP(config, ops)
        self.input_layernorm = ops.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = ops.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        span: Span,
        cache: KVCache | None,
        layer: int,
        hook: LayerHook | None = None,
        state: Any = None,
    ) -> tuple[Tensor, Any]:
        """(x, state): the state is the hook's, handed from layer to layer."""
        normed = self.input_layernorm(x)
        x = x + self.self_attn(normed, span, cache, layer, hook)
        if hook is not None:
            x, state = hook.after_attention(layer, x, normed, state)
        return x + self.mlp(self.post_attention_layernorm(x)), state


class Llama(nn.Module):
    """Token embedding, decoder layers and final norm; prediction heads live with the model."""

    def __init__(self, config: LlamaConfig, ops: Any = default_ops) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = ops.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, ops) for _ in range(config.num_layers))
        self.norm = ops.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        starts: Sequence[int] | Tensor | None = None,
        cache: KVCache | None = None,
        hook: LayerHook | None = None,
        padding: Sequence[int] | None = None,
    ) -> Tensor:
        """Hidden states [rows, L, hidden] after the final norm.

        Args:
            x: Input embeddings [rows, L, hidden].
            starts: Sequence position of each row's first input; all 0 when absent. A tensor [rows]
                makes a pass of fixed shape: it reads all of the cache, behind a mask.
            cache: Holds everything before `starts` and takes the keys and values of the inputs.
            hook: What changes the pass.
            padding: How many inputs at the beginning of each row are not there.
        """
        if starts is None:
            starts = [0] * len(x)
        capacity = 0 if cache is None else cache.capacity
        span = make_span(self.config, starts, x.shape[1], x.device, padding, capacity)
        state = None
        for i, layer in enumerate(self.layers):
            if hook is not None and hook.checkpointing:
                x, state = checkpoint(layer, x, span, cache, i, hook, state, use_reentrant=False)
            else:
                x, state = layer(x, span, cache, i, hook, state)
        return self.norm(x)
