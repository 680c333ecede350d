"""The hook that an adapter hangs into the decoder, and what its blenders work on in a pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..grid import Grid, offset_table
from ..settings import AdapterOrder, Semantics
from .adapter import LayerAdapter
from .blender import FoldedBlender, PatchBlender, seen_offsets


@dataclass(frozen=True)
class FaidHook:
    """An adapter at work in one pass; a `DrawingHook` of the model."""

    layers: Mapping[int, LayerAdapter]
    head: nn.Module | None = None
    """The adapter's own prediction head."""
    strength: float | Tensor = 1.0
    """Factor of everything that the adapter changes; a tensor [] in a pass that a graph repeats
    with other numbers."""
    blending: Work | None = None
    """Without it the blenders do nothing, as for a prompt."""
    checkpointing: bool = False

    def project(self, layer: int, x: Tensor, q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """q and v with the layer's low-rank changes."""
        adapter = self.layers.get(layer)
        if adapter is not None and adapter.q_proj is not None:
            q = q + self.strength * adapter.q_proj(x)
        if adapter is not None and adapter.v_proj is not None:
            v = v + self.strength * adapter.v_proj(x)
        return q, v

    def after_attention(
        self, layer: int, x: Tensor, normed: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """x plus the output of the layer's blender, if it has one.

        The state is the output [..., K, hidden] of the last blender.
        """
        adapter, work = self.layers.get(layer), self.blending
        if adapter is None or work is None or adapter.blender is None:
            return x, state
        assert adapter.retrieval_layernorm is not None
        norm = adapter.retrieval_layernorm
        blended = blend(adapter.blender, norm, layer, normed, state, work)
        return work.add(x, self.strength * blended.mean(dim=-2)), blended

    def predict(self, hidden: Tensor, head: nn.Module) -> Tensor:
        """Logits by the adapter's own head, mixed with the model's by the strength."""
        if self.head is None:
            return head(hidden)
        if not isinstance(self.strength, Tensor) and self.strength == 1:
            return self.head(hidden)
        own, base = self.head(hidden), head(hidden)
        weight = self.strength
        return base.lerp(own, weight.to(base.dtype) if isinstance(weight, Tensor) else weight)


def slot_table(
    grid: Grid, hops: tuple[int, ...], device: torch.device, order: AdapterOrder = "raster"
) -> Tensor:
    """Slots [N, offsets] of a feature map that the surroundings of each position stand in: slot
    j + 1 belongs to token j, slot 0 to what lies outside."""
    return torch.from_numpy(offset_table(grid, seen_offsets(hops, order)) + 1).to(device)


class Work(Protocol):
    """What the blenders work on in one pass: some positions of B pictures."""

    @property
    def candidates(self) -> Tensor:
        """[..., K, hidden] embeddings of the retrieved codes, zero where there is none."""
        ...

    def inputs(self, hidden: Tensor) -> Tensor:
        """What `surroundings` takes of a layer's normalised inputs [rows >= B, length, hidden]."""
        ...

    def surroundings(self, layer: int, h: Tensor) -> Tensor:
        """The hidden states that are seen around each position [..., offsets * hidden]."""
        ...

    def received(self, centres: Tensor, first: bool) -> Tensor:
        """The candidates [..., K, hidden] that a blender receives, of those there are.

        Args:
            first: Whether it is the first blender of the pass.
        """
        ...

    def add(self, x: Tensor, features: Tensor) -> Tensor:
        """x [rows, length, hidden] plus features [..., hidden] where the positions are."""
        ...


class FeatureMaps:
    """The normalised hidden states of the drawn tokens of one drawing, per blender layer.

    Slot j + 1 of a map belongs to token j; slot 0 stays zero and stands for what lies outside.
    """

    def __init__(
        self,
        layers: Iterable[int],
        rows: int,
        size: int,
        hidden: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.maps = {
            layer: torch.zeros(rows, size + 1, hidden, device=device, dtype=dtype)
            for layer in layers
        }


@dataclass(frozen=True)
class BlendPass:
    """What the blenders work on in one pass over B pictures, L positions of each."""

    positions: Tensor
    """[B, L] grid positions that are being predicted."""
    candidates: Tensor
    """[B, L, K, hidden] embeddings of the retrieved codes, zero where there is none."""
    active: Tensor
    """[B, L] whether retrieval runs at the position."""
    slots: Tensor
    """[N, offsets] as `slot_table` makes them."""
    maps: FeatureMaps | None = None
    """What was drawn in former passes; None when this pass sees the pictures from the start."""
    first: int = 0
    """The pass's input that predicts positions[:, 0]; the others follow."""
    semantics: Semantics = "step"
    rows: Tensor | None = None
    """[B] 1 or 0: which pictures are blended at all; all when absent."""

    def inputs(self, hidden: Tensor) -> Tensor:
        """Those that predict the positions."""
        rows, count = self.positions.shape
        return hidden[:rows, self.first : self.first + count]

    def received(self, centres: Tensor, first: bool) -> Tensor:
        """All of them, or none where retrieval does not run: see `Semantics`."""
        if first or self.semantics == "stepzero":
            return centres * self.active[..., None, None].to(centres.dtype)
        return centres

    def surroundings(self, layer: int, h: Tensor) -> Tensor:
        """The drawn hidden states around each position [B, L, offsets * hidden].

        Args:
            h: Normalised hidden states [B, L, hidden] of the inputs that predict the positions:
                the tokens just before them. They are remembered.
        """
        if self.maps is None:
            drawn = h.new_zeros(len(h), len(self.slots) + 1, h.shape[-1])
        else:
            drawn = self.maps.maps[layer]
        row = torch.arange(len(h), device=h.device)[:, None]
        # The input of position 0 is the prompt's end, no token: slot 0 stays zero.
        drawn[row, self.positions] = h * (self.positions > 0)[..., None].to(h.dtype)
        return drawn[row[..., None], self.slots[self.positions]].flatten(2)

    def add(self, x: Tensor, features: Tensor) -> Tensor:
        """x [rows, length, hidden] plus features [B, L, hidden] where the positions are predicted.

        Rows after the first B, the unconditional stream, stay as they are.
        """
        if self.rows is not None:
            features = features * self.rows[:, None, None].to(features.dtype)
        batch, count, _ = features.shape
        after = x.shape[1] - self.first - count
        return x + F.pad(features.to(x.dtype), (0, 0, self.first, after, 0, len(x) - batch))


@dataclass(frozen=True)
class MaskedPass:
    """What the blenders work on in one pass over B pictures that are filled in any order: P unknown
    positions at which retrieval runs. Nothing is remembered: every pass computes all tokens."""

    rows: Tensor
    """[P] the picture of each position."""
    positions: Tensor
    """[P]."""
    candidates: Tensor
    """[P, K, hidden] embeddings of the retrieved codes, zero where there is none."""
    known: Tensor
    """[B, N] which tokens stand; the hidden states of the others count as zero."""
    slots: Tensor
    """[N, offsets] as `slot_table` makes them."""
    first: int = 0
    """The pass's input that is position 0; the others follow."""

    def inputs(self, hidden: Tensor) -> Tensor:
        """Those of the whole pictures [B, N, hidden]."""
        rows, size = self.known.shape
        return hidden[:rows, self.first : self.first + size]

    def received(self, centres: Tensor, first: bool) -> Tensor:
        """All of them: there is no position without retrieval here."""
        return centres

    def surroundings(self, layer: int, h: Tensor) -> Tensor:
        """The hidden states [P, offsets * hidden] of the known tokens around each position.

        Args:
            h: Normalised hidden states [B, N, hidden].
        """
        stand = F.pad(h * self.known[..., None].to(h.dtype), (0, 0, 1, 0))  # slot 0 stays zero
        return stand[self.rows[:, None], self.slots[self.positions]].flatten(1)

    def add(self, x: Tensor, features: Tensor) -> Tensor:
        """x [rows, length, hidden] plus features [P, hidden] at the positions."""
        places = (self.rows, self.first + self.positions)
        return x.index_put(places, features.to(x.dtype), accumulate=True)


def blend(
    blender: PatchBlender | FoldedBlender,
    norm: Any,
    layer: int,
    hidden: Tensor,
    blended: Tensor | None,
    work: Work,
) -> Tensor:
    """One blender in its layer: f [..., K, hidden], which the next blender takes as candidates.

    What the layer adds to the residual stream is the mean over K.

    Args:
        norm: `retrieval_layernorm`.
        hidden: The layer's normalised inputs [rows >= B, length, hidden].
        blended: The former blender's output; None for the first one.
    """
    given = work.candidates if blended is None else blended
    centres = norm(given.to(norm.weight.dtype))  # in training the base may be less precise
    received = work.received(centres, first=blended is None)
    return blender(work.surroundings(layer, work.inputs(hidden)), received)
