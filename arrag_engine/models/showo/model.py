"""Show-o for drawing: the Phi decoder, its head for picture tokens, and the picture tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...grid import ANY_ORDER, Grid
from ...images import Frame
from .. import ops as default_ops
from ..hooks import DrawingHook
from ..packed import PackedLinear, packed_ops
from ..picture_model import LOGIT_COPIES, PictureModel
from .phi import Phi, PhiConfig, attend_among
from .pixels import BICUBIC
from .vq import VQConfig, VQModel

SPECIAL = ("pad", "soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg")
"""The special tokens, in the order in which their ids follow those of the text."""
MAX_TEXT = 128
"""Words of a prompt; one more id fits the text part."""
BORDERS = 2
"""Ids around a picture: one that begins it and one that ends it."""

HIDDEN = torch.finfo(torch.float16).min
"""Added to the score of what nobody sees: its share is 0 in every dtype."""

Text = list[tuple[Tensor, Tensor]]
"""Keys and values [1, kv_heads, T, head_dim] of a prompt in each layer."""


@dataclass(frozen=True)
class Vocabulary:
    """Where the ids of text, special tokens, picture codes and the mask lie."""

    size: int
    codes: int

    @property
    def first_code(self) -> int:
        """Id of the picture code 0."""
        return self.size - 1 - self.codes

    @property
    def text(self) -> int:
        """Number of text ids."""
        return self.first_code - len(SPECIAL)

    @property
    def mask(self) -> int:
        """Stands for a picture token that is not known."""
        return self.size - 1

    def special(self, name: str) -> int:
        """Id of a special token."""
        return self.text + SPECIAL.index(name)


@dataclass(frozen=True)
class ShowOConfig:
    """Sizes of a whole drawing model."""

    phi: PhiConfig
    vq: VQConfig
    grid: Grid
    max_text: int = MAX_TEXT

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.phi.vocab_size, self.vq.codebook_size)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures it draws."""
        return self.grid.height * self.vq.patch_size, self.grid.width * self.vq.patch_size

    @property
    def length(self) -> int:
        """Ids of the longest prompt and the picture."""
        return self.max_text + 1 + self.grid.size + BORDERS

    @property
    def decoder(self) -> PhiConfig:
        return self.phi

    def code_head(self, ops: Any) -> nn.Module:
        """A new head from hidden states to logits of picture codes."""
        return ops.Linear(self.phi.hidden_size, self.vq.codebook_size)


class TextAttention:
    """Each id sees those before it; what later passes need of it is kept."""

    def __init__(self) -> None:
        self.kept: Text = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.kept.append((k, v))
        return attend_among(q, k, v, causal=True)


class PictureAttention:
    """Each id of a picture sees its prompt and the whole picture.

    Args:
        texts: Of prompts that each serve as many pictures in a row.
    """

    def __init__(self, texts: list[Text]) -> None:
        self.texts = texts

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        count = len(q) // len(self.texts)
        # On a CPU one picture at a time: a wider call would round differently.
        step = 1 if q.device.type == "cpu" else count
        for first in range(0, len(q), step):
            rows, text = slice(first, first + step), self.texts[first // count][layer]
            keys, values = (
                torch.cat((words.expand(step, -1, -1, -1), own[rows]), dim=2)
                for words, own in zip(text, (k, v), strict=True)
            )
            out[rows] = attend_among(q[rows], keys, values)
        return out


class MaskedAttention:
    """Who sees whom in whole sequences, the text and the picture after it.

    Args:
        mask: True where a query sees a key [rows, 1, L, L].
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_among(q, k, v, self.mask)


def sequence_mask(pads: Tensor, length: int, text: int) -> Tensor:
    """Which ids of a sequence see which [rows, 1, length, length].

    Text sees what stands before it, a picture everything. Nobody but themselves sees pads.

    Args:
        pads: How many ids at the beginning of each row are not there [rows].
        text: Ids before the picture.
    """
    place = torch.arange(length, device=pads.device)
    before = (place <= place[:, None]) | (place >= text)[:, None]
    there = place >= pads[:, None, None]
    return (before & there | (place == place[:, None]))[:, None]


class TextBuffers:
    """What `PictureAttention` does, in one call of fixed shape: the text of every picture lies
    behind its own keys, filled up to one length, and a mask hides what it does not fill."""

    def __init__(self, config: ShowOConfig, rows: int, text: int, own: int, like: Tensor) -> None:
        """
        Args:
            text: Ids that fit.
            own: Ids of a picture.
            like: Has the dtype and the device.
        """
        c = config.phi
        shape = (2, c.num_layers, rows, c.num_kv_heads, text, c.head_dim)
        self.keys, self.values = like.new_zeros(shape)
        self.mask = like.new_zeros(rows, 1, own, own + text)
        """Added to the scores."""

    def write(self, opened: list[Text], first: int, copies: int) -> None:
        """See `MaskedBackbone.new_opened`."""
        own = self.mask.shape[2]
        for prompt in opened:
            rows, length = slice(first, first + copies), prompt[0][0].shape[2]
            for layer, (keys, values) in enumerate(prompt):
                self.keys[layer, rows, :, :length] = keys
                self.values[layer, rows, :, :length] = values
            self.mask[rows, :, :, : own + length] = 0
            self.mask[rows, :, :, own + length :] = HIDDEN
            first += copies

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys = torch.cat((k, self.keys[layer]), dim=2)
        values = torch.cat((v, self.values[layer]), dim=2)
        return attend_among(q, keys, values, self.mask)


class ShowO(PictureModel):
    """The part of Show-o that draws. It keeps no state of a picture being drawn.

    The picture tokenizer always runs in float32: in lower precision it assigns other codes than the
    ones an index was built with. The head predicts picture codes only.
    """

    config: ShowOConfig
    vq: VQModel
    order = ANY_ORDER
    picture_start = 1
    """Behind the id that begins a picture."""
    repeats = True

    def __init__(
        self, config: ShowOConfig, ops: Any = default_ops, storage: torch.dtype | None = None
    ) -> None:
        """An empty model.

        Args:
            ops: Layers to build from.
            storage: What the linear layers of decoder and head store their weights in (see
                `packed.py`), where it is not what they compute in.
        """
        super().__init__()
        self.config = config
        decoder_ops = ops if storage is None else packed_ops(ops, storage)
        # Every pass looks up every token of a picture: the embedding stays where it computes.
        self.phi = Phi(config.phi, decoder_ops, ops.Embedding)
        self.head = decoder_ops.Linear(config.phi.hidden_size, config.vq.codebook_size)
        self.vq = VQModel(config.vq, ops)

    @property
    def frame(self) -> Frame:
        """As the official programs prepare pictures."""
        return Frame(*self.config.image_size, BICUBIC, whole=True)

    @property
    def hidden_size(self) -> int:
        """Width of the decoder."""
        return self.config.phi.hidden_size

    @property
    def max_positions(self) -> int:
        """Tokens of prompt and picture that fit together."""
        return self.config.phi.max_positions

    @property
    def picture_length(self) -> int:
        """Ids of a picture and of those around it."""
        return self.grid.size + BORDERS

    @property
    def dtype(self) -> torch.dtype:
        """What the decoder computes in."""
        return self.phi.final_layernorm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie (all of them, unless ComfyUI keeps some on the CPU)."""
        return self.phi.final_layernorm.weight.device

    @property
    def code_head(self) -> nn.Module:
        """From hidden states to logits of picture codes."""
        return self.head

    @property
    def final_norm(self) -> nn.Module:
        """The last layer of the decoder."""
        return self.phi.final_layernorm

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [..., hidden] of ids [...] of the whole vocabulary."""
        return self.phi.embed_tokens(ids).to(self.dtype)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Embeddings [..., hidden] of picture codes [...]."""
        return self.embed(codes + self.config.vocabulary.first_code)

    def open(self, ids: Tensor, hook: DrawingHook | None = None) -> list[Text]:
        """Keys and values of prompts [rows, T], whose pads on the left are left out.

        Text never sees the picture: this is all it contributes to any pass. Positions are counted
        from the beginning of the picture, so that pictures share them whatever the prompt.
        """
        pads = self.leading_pads(ids).tolist()
        return [self._open_one(row[n:], hook) for row, n in zip(ids, pads, strict=True)]

    def leading_pads(self, ids: Tensor) -> Tensor:
        """How many pads prompts [rows, T] begin with [rows]."""
        return (ids == self.config.vocabulary.special("pad")).cumprod(1).sum(1)

    def _open_one(self, ids: Tensor, hook: DrawingHook | None) -> Text:
        attend, places = TextAttention(), torch.arange(-len(ids), 0, device=ids.device)
        self.phi(self.embed(ids)[None], places, attend, hook)
        return attend.kept

    def new_opened(self, rows: int, capacity: int, device: torch.device) -> TextBuffers:
        """See `MaskedBackbone`."""
        own, like = self.picture_length, torch.empty(0, dtype=self.dtype, device=device)
        return TextBuffers(self.config, rows, capacity - own, own, like)

    def masked_logits(
        self,
        opened: list[Text] | TextBuffers,
        tokens: Tensor,
        known: Tensor,
        hook: DrawingHook | None = None,
    ) -> Tensor:
        """Logits [rows, N, codes] of pictures with tokens [rows, N], of which those with known
        [rows, N] stand; see `MaskedBackbone`."""
        hidden = self.picture_states(opened, tokens, known, hook)
        return self.predict(hidden[:, 1:-1], hook)

    def predict(self, hidden: Tensor, hook: DrawingHook | None = None) -> Tensor:
        """Logits [..., codes] of hidden states [..., hidden]."""
        return self.head(hidden) if hook is None else hook.predict(hidden, self.head)

    def picture_states(
        self,
        opened: list[Text] | TextBuffers,
        tokens: Tensor,
        known: Tensor,
        hook: DrawingHook | None = None,
    ) -> Tensor:
        """Hidden states [rows, N + 2, hidden] of pictures and the ids around them."""
        x = self.embed(self.picture_ids(tokens, known))
        positions = torch.arange(x.shape[1], device=x.device)
        attend = opened if isinstance(opened, TextBuffers) else PictureAttention(opened)
        return self.phi(x, positions, attend, hook)

    def whole_states(
        self,
        text: Tensor,
        tokens: Tensor,
        known: Tensor,
        hook: DrawingHook | None = None,
    ) -> Tensor:
        """Hidden states [rows, T + N + 2, hidden] of one pass over prompts [rows, T], which may
        begin with pads, and the pictures behind them: the same as with `open`, in the form that
        training needs."""
        ids = torch.cat((text, self.picture_ids(tokens, known)), dim=1)
        words = text.shape[1]
        mask = sequence_mask(self.leading_pads(text), ids.shape[1], words)
        positions = torch.arange(-words, ids.shape[1] - words, device=ids.device)
        return self.phi(self.embed(ids), positions, MaskedAttention(mask), hook)

    def picture_ids(self, tokens: Tensor, known: Tensor) -> Tensor:
        """Ids [rows, N + 2] of pictures, with those that begin and end them."""
        vocabulary = self.config.vocabulary
        ids = (tokens + vocabulary.first_code).masked_fill(~known, vocabulary.mask)
        begin, end = (ids.new_full((len(ids), 1), vocabulary.special(n)) for n in ("soi", "eoi"))
        return torch.cat((begin, ids, end), dim=1)

    def drawing_bytes(self, rows: int, capacity: int, window: int) -> int:
        """About the memory that drawing `rows` sequences takes besides the weights.

        What a pass makes of its float32 logits and leaves of them, a layer's inner states, keys and
        values of the prompts, their mask, and the largest copy of packed weights. Pixels are not in
        it: see `picture_bytes`.

        Args:
            capacity: Ids of prompt and picture.
            window: Of no account: every pass computes the whole picture.
        """
        c, size = self.config.phi, self.config.grid.size + BORDERS
        capacity += 64  # buffers of fixed length are filled up
        logits = rows * (LOGIT_COPIES + 1) * size * self.config.vq.codebook_size
        inner = rows * size * (2 * c.intermediate_size + 8 * c.hidden_size)
        text = 2 * c.num_layers * rows * c.num_kv_heads * (capacity - size) * c.head_dim
        packed = (layer for layer in self.modules() if isinstance(layer, PackedLinear))
        copied = max((layer.copied for layer in packed), default=0)
        mask = rows * size * capacity
        return (inner + text + mask + copied) * self.dtype.itemsize + 4 * logits
