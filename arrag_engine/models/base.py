"""What a backbone is: everything that drawing, retrieval and building ask of a model.

A new backbone is a folder beside this file whose model class has these properties and methods; it
inherits from nothing here. It names its drawing order, and `decode` has one loop for each order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..grid import DrawingOrder, Grid
from ..settings import Sampling

if TYPE_CHECKING:  # a command line is read and refused without PyTorch
    import numpy as np
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """An encoded caption."""

    text: str
    ids: list[int]
    unconditional: list[int]
    """Ids of the second stream without a negative prompt; as many as `ids`."""
    unknown: list[str]
    """Words that the tokenizer does not know, in order of appearance."""
    notes: tuple[str, ...] = ()
    """Sentences for the person, such as what was cut off."""


class PromptEncoder(Protocol):
    """Captions to ids."""

    pad_id: int
    """Fills prompts up on the left where several run together."""
    tokenizer: Any
    """The library's, which knows the vocabulary."""

    @property
    def has_unknown(self) -> bool:
        """Whether there are words that the tokenizer does not know."""
        ...

    def encode(self, text: str, called: str = "prompt") -> Prompt:
        """Ids of the prompt for a caption; an InputError where it is empty or too long.

        Args:
            called: What a message calls it.
        """
        ...


class PictureTokenizer(Protocol):
    """Pictures to codes and back, always in float32."""

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [B, h, w] int64 and their unit vectors [B, h, w, dim] of images [B, 3, H, W] in
        [-1, 1]."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Images [B, 3, H, W] of codes [B, h, w]."""
        ...

    def codebook(self, device: torch.device) -> np.ndarray:
        """Unit rows [codes, dim] float32."""
        ...


class Backbone(Protocol):
    """A model that draws. It keeps no state of a picture being drawn."""

    order: DrawingOrder

    @property
    def grid(self) -> Grid:
        """The tokens of a picture."""
        ...

    @property
    def vocab(self) -> int:
        """Number of image codes."""
        ...

    @property
    def code_dim(self) -> int:
        """Numbers of a code's vector."""
        ...

    @property
    def max_positions(self) -> int:
        """Tokens of prompt and picture that fit together."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width of the decoder."""
        ...

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Embeddings [..., hidden] of image codes [...]."""
        ...

    @property
    def vq(self) -> PictureTokenizer: ...

    def parameters(self) -> Iterator[Tensor]:
        """The weights."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What the decoder computes in."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        ...


class Loaded(Protocol):
    """A backbone with what belongs to it; `checkpoints.Checkpoint` is one."""

    @property
    def model(self) -> Backbone: ...

    @property
    def prompt_encoder(self) -> PromptEncoder: ...

    @property
    def name(self) -> str:
        """What a person calls it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the weights, whatever their dtype and layout."""
        ...

    @property
    def sampling(self) -> Sampling:
        """Guidance and temperature that suit it."""
        ...


class RasterBackbone(Backbone, Protocol):
    """Predicts a token from the prompt and the tokens before it; `decode/raster.py` draws with it.

    A cache belongs to one drawing and is written by `prefill` and `logits` alone. A hook is what an
    adapter adds to a pass; the model only calls it.
    """

    def embed_text(self, ids: Tensor) -> Tensor:
        """Embeddings [..., hidden] of text ids [...]."""
        ...

    def new_cache(self, rows: int, capacity: int, device: torch.device) -> Any:
        """Keys and values of `rows` sequences of up to `capacity` tokens."""
        ...

    def prefill(
        self, x: Tensor, cache: Any, copies: int = 1, hook: Any = None, first: int = 0
    ) -> Tensor:
        """Run inputs x [rows, T, hidden] from position 0 on into a cache, of which row r becomes
        the sequences first + r * copies .. first + (r + 1) * copies - 1. Returns the last hidden
        states [rows, hidden]."""
        ...

    def predict(self, hidden: Tensor, hook: Any = None) -> Tensor:
        """Logits [..., vocab] of hidden states [..., hidden]."""
        ...

    def logits(
        self,
        x: Tensor,
        starts: Sequence[int] | Tensor | None = None,
        cache: Any = None,
        hook: Any = None,
    ) -> Tensor:
        """Logits [rows, L, vocab] after each of the inputs x [rows, L, hidden].

        Args:
            starts: Sequence position of each row's first input; all 0 when absent. A tensor [rows]
                asks for a pass of fixed shape, in which no number on the host plays a part.
            cache: Holds everything before `starts` and takes the inputs.
        """
        ...


class MaskedBackbone(Backbone, Protocol):
    """Predicts all unknown tokens from the prompt and the known ones, wherever they stand;
    `decode/masked.py` draws with it. A hook is what an adapter adds; the model only calls it."""

    picture_start: int
    """The input of position 0 in a pass over pictures."""
    repeats: bool
    """Whether it has `new_opened`, so that a GPU can repeat a pass of fixed shape."""

    @property
    def picture_length(self) -> int:
        """Ids of a picture and of what stands around it."""
        ...

    def open(self, ids: Tensor, hook: Any = None) -> Any:
        """What the prompts [rows, T] contribute to every pass, computed once for a drawing."""
        ...

    def new_opened(self, rows: int, capacity: int, device: torch.device) -> Any:
        """Buffers for what prompts contribute to pictures [rows], of prompt and picture of up to
        `capacity` ids together, in place of what `open` returns.

        Their method `write(opened, first, copies)` takes what `open` returned for some prompts, of
        which each serves `copies` pictures in a row, from picture `first` on.
        """
        ...

    def masked_logits(self, opened: Any, tokens: Tensor, known: Tensor, hook: Any = None) -> Tensor:
        """Logits [rows, N, vocab] of pictures with tokens [rows, N], of which the mask `known`
        [rows, N] stands; what is not known has no influence.

        Args:
            opened: What `open` returned for as many prompts, or for prompts that each serve
                rows / prompts pictures in a row; or buffers as `new_opened` made them.
        """
        ...
