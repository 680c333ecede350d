"""How much a run of the kit measures."""

from __future__ import annotations

from dataclasses import dataclass

from ...grid import DrawingOrder

PROMPTS = (
    *("a red apple on a wooden table", "two cats on a sofa", "a green bicycle near a brick wall"),
    *("a lighthouse by the sea at sunset", "a bowl of soup", "three yellow tulips in a vase"),
    *("a steam train in the snow", "a blue bird on a branch", "a city street at night in the rain"),
    *("an old man with a beard", "a slice of cake on a plate", "a dog running on the beach"),
    *("a castle on a hill", "a cup of coffee and a book", "a hot air balloon over fields"),
    *("a wooden boat on a lake", "a robot reading a newspaper", "a fox in a forest"),
    *("a market stall with fruit", "a portrait of a woman in a hat"),
)
"""Drawn where the pictures have no captions."""
AROUND = ("ring-8",)
BEFORE = ("causal-4", "causal-8", "causal-12", "causal-24")
"""Neighbourhoods that are compared, for models that draw in any order and for the others."""


@dataclass(frozen=True)
class Effort:
    """How many of what, for about an hour on a card of 12 GB with Janus-Pro-1B."""

    pictures: int = 300
    """Of the folder, evenly taken; one of ten is held out."""
    prompts: int = 20
    rounds: int = 2
    """Drawings for each speed; the fastest counts, the first one also warms up."""
    batches: tuple[int, ...] = (1, 4)
    windows: tuple[int, ...] = (1, 16)
    """Tokens a pass, in raster order."""
    temperatures: tuple[float, ...] = (0.3, 0.6, 1.0)
    paced: int = 3
    """Prompts for the tokens accepted per pass."""
    weights: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
    """λ of the bits."""
    taus: tuple[float, ...] = (0.05, 0.1, 0.3, 1.0)
    neighbours: tuple[int, ...] = (16, 64, 256, 2048)
    drawn_weights: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 0.9)
    """λ of the drawings."""

    def neighborhoods(self, order: DrawingOrder) -> tuple[str, ...]:
        return BEFORE if order.raster else AROUND


FULL = Effort()
QUICK = Effort(
    *(20, 2, 1, (1, 2), (1, 4), (0.6,), 1),
    weights=(0.1, 0.4),
    taus=(0.1, 1.0),
    neighbours=(16, 64),
    drawn_weights=(0.1, 0.9),
)
"""A rehearsal of a minute or two with a small model."""
EFFORTS = {False: FULL, True: QUICK}
HELD_OUT = 10
"""One of so many pictures is held out."""
