"""What may change a pass of a drawing model from outside: the model calls it and knows nothing else
of it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class LayerHook(Protocol):
    """What the layers of a decoder call."""

    @property
    def checkpointing(self) -> bool:
        """Whether layers are computed again for the gradient instead of keeping what is inside."""
        ...

    def project(self, layer: int, x: Tensor, q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The queries and values [rows, L, width] that layer's attention uses.

        Args:
            x: Its normalised inputs [rows, L, hidden], of which it made q and v.
        """
        ...

    def after_attention(
        self, layer: int, x: Tensor, normed: Tensor, state: Any
    ) -> tuple[Tensor, Any]:
        """The residual stream [rows, L, hidden] after attention, before the MLP adds to it, and the
        next state.

        Args:
            normed: The layer's normalised inputs [rows, L, hidden].
            state: What the call for the former layer returned; None before the first.
        """
        ...


class DrawingHook(LayerHook, Protocol):
    """What may change a pass of the whole drawing model."""

    def predict(self, hidden: Tensor, head: nn.Module) -> Tensor:
        """Logits [..., codes] of hidden states [..., hidden], where the model would use `head`."""
        ...
