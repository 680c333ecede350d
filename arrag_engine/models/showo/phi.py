"""The Phi decoder of Show-o: layers that keep nothing and do not know who sees whom.

Attention is an argument of a pass (`Attend`): the text of a prompt sees what stands before it, a
picture sees everything. A `LayerHook` may change a pass; what it adds after attention stands beside
attention and MLP, for a layer has one norm and adds both up: the MLP of the same layer does not see
it, all later layers do. Giving it to that MLP would take a second norm, which the model was not
trained with. Module names follow the official checkpoint keys (`showo.model.*`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import ops as default_ops
from ..hooks import LayerHook
from ..ops import rowwise

Rotary = tuple[Tensor, Tensor]
"""Cosine and sine [L, rotary / 2] of positions [L]."""
gelu = partial(F.gelu, approximate="tanh")


@dataclass(frozen=True)
class PhiConfig:
    """Sizes of the decoder; the defaults are Phi-1.5's, which no tensor shows."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    """Numbers at the beginning of each head that positions turn."""
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    max_positions: int = 2048

    @property
    def query_size(self) -> int:
        """Width of all heads' queries together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all heads' keys, or values, together."""
        return self.num_kv_heads * self.head_dim


class Attend(Protocol):
    """Who sees whom in one pass."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What the queries q [rows, heads, L, head_dim] make of what they see: of k and v
        [rows, kv_heads, L, head_dim], or of more."""
        ...


def rotary_angles(config: PhiConfig, positions: Tensor) -> Rotary:
    """See `Rotary`; only differences of positions matter."""
    pairs = torch.arange(0, config.rotary_dim, 2, device=positions.device, dtype=torch.float32)
    frequency = 1.0 / config.rope_theta ** (pairs / config.rotary_dim)
    angle = positions.float()[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotary position embedding of the first numbers of each head of x [rows, heads, L, head_dim];
    pairs are (i, i + rotary / 2)."""
    cos, sin = (t.to(x.dtype) for t in rotary)
    half = cos.shape[-1]
    a, b, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def attend_among(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Attention of q [rows, heads, L, head_dim] over k, v [rows, kv_heads, S, head_dim].

    Args:
        mask: True where a query sees a key [..., L, S]; all of them when absent.
    """
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)


class Attention(nn.Module):
    def __init__(self, config: PhiConfig, ops: Any) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = ops.Linear(config.hidden_size, config.query_size)
        self.k_proj = ops.Linear(config.hidden_size, config.kv_size)
        self.v_proj = ops.Linear(config.hidden_size, config.kv_size)
        self.dense = ops.Linear(config.query_size, config.hidden_size)
        self.q_layernorm = ops.LayerNorm(config.head_dim, eps=config.norm_eps)
        self.k_layernorm = ops.LayerNorm(config.head_dim, eps=config.norm_eps)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        attend: Attend,
        layer: int,
        hook: LayerHook | None = None,
    ) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if hook is not None:
            q, v = hook.project(layer, x, q, v)
        q, k, v = (
            t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for t in (q, k, v)
        )  # [rows, heads, L, head_dim]
        q, k = rotate(self.q_layernorm(q), rotary), rotate(self.k_layernorm(k), rotary)
        out = attend(layer, q, k, v)
        return self.dense(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: PhiConfig, ops: Any) -> None:
        super().__init__()
        self.fc1 = ops.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = ops.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(rowwise(gelu, self.fc1(x)))


class Layer(nn.Module):
    """Attention and MLP side by side, behind one norm."""

    def __init__(self, config: PhiConfig, ops: Any) -> None:
        super().__init__()
        self.self_attn = Attention(config, ops)
        self.mlp = MLP(config, ops)
        self.input_layernorm = ops.LayerNorm(config.hidden_size, eps=config.norm_eps)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        attend: Attend,
        layer: int,
        hook: LayerHook | None = None,
        state: Any = None,
    ) -> tuple[Tensor, Any]:
        """(x, state): the state is the hook's, handed from layer to layer."""
        normed = self.input_layernorm(x)
        x = x + self.self_attn(normed, rotary, attend, layer, hook)
        if hook is not None:
            x, state = hook.after_attention(layer, x, normed, state)
        return x + self.mlp(normed), state


class Phi(nn.Module):
    """Token embedding, decoder layers and final norm; the prediction head lives with the model."""

    def __init__(self, config: PhiConfig, ops: Any = default_ops, embedding: Any = None) -> None:
        """
        Args:
            ops: Layers to build from.
            embedding: The token embedding's layer, if another one.
        """
        super().__init__()
        self.config = config
        make = embedding or ops.Embedding
        self.embed_tokens = make(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, ops) for _ in range(config.num_layers))
        self.final_layernorm = ops.LayerNorm(config.hidden_size, eps=config.norm_eps)

    def forward(
        self, x: Tensor, positions: Tensor, attend: Attend, hook: LayerHook | None = None
    ) -> Tensor:
        """Hidden states [rows, L, hidden] after the final norm.

        Args:
            x: Input embeddings [rows, L, hidden].
            positions: [L], of all rows; counted from anywhere.
            hook: What changes the pass.
        """
        cos, sin = rotary_angles(self.config, positions)
        rotary, state = (cos.to(x.dtype), sin.to(x.dtype)), None  # once for all layers
        for i, layer in enumerate(self.layers):
            if hook is not None and hook.checkpointing:
                x, state = checkpoint(layer, x, rotary, attend, i, hook, state, use_reentrant=False)
            else:
                x, state = layer(x, rotary, attend, i, hook, state)
        return self.final_layernorm(x)
