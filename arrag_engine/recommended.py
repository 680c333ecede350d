"""Recommended values for each model: the one table that untouched settings come from.

`pocket` and `pocket-o` have values that were measured by drawing (docs/pocket.md). Other models of
the Janus-Pro family have the values of their own configuration, the paper's neighbours and
temperature, and a small weight: they were not measured. Other models of the Show-o family have the
sampling and steps of its official examples, by the size of their pictures; their retrieval was not
measured either.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .checkpoints.loading import LARGE
from .checkpoints.loading import SHOW_O as SHOW_O_SAMPLING
from .checkpoints.loading import SHOW_O_LARGE as SHOW_O_LARGE_SAMPLING
from .index import KeySpec
from .models.base import Loaded
from .settings import RetrievalOptions, Sampling, Schedule


@dataclass(frozen=True)
class Recommended:
    """The values of untouched settings."""

    source: str
    """Where the values come from, as the notes of a drawing print it."""
    sampling: Sampling
    keys: KeySpec
    retrieval: RetrievalOptions
    """For pictures chosen by the prompt's words."""
    faid_weight: float
    """λ of DAiD beside a FAiD adapter."""
    visible_weight: float
    """The least λ at which a subject that the model does not know is recognised."""
    schedule: Schedule = field(default_factory=Schedule)
    """Of models that draw in any order. Growing is recommended with retrieval only."""


POCKET = Recommended(
    "measured with pocket",
    Sampling(cfg=1.5, temperature=0.6, top_p=0.95),
    KeySpec("causal-24", "zero", "encoder", 2.0),
    RetrievalOptions(weight=1.0, temperature=0.1, neighbours=16),
    faid_weight=1.0,
    visible_weight=0.8,
)
POCKET_O = Recommended(
    "measured with pocket-o",
    Sampling(cfg=2.0),
    KeySpec("ring-8", "zero", "codebook", 24.0),
    RetrievalOptions(1.0, 0.3, 16, border_keys="in", distances="mean"),
    faid_weight=1.0,
    visible_weight=0.8,
    schedule=Schedule(steps=16, grow=True),
)
JANUS_PRO = Recommended(
    "the paper's K and τ with a small λ, not measured with this model",
    Sampling(),
    KeySpec(),
    RetrievalOptions(weight=0.1, temperature=1.0, neighbours=2048),
    faid_weight=0.0,
    visible_weight=0.0,
)
SHOW_O = Recommended(
    "Show-o's official examples; retrieval not measured with this model",
    SHOW_O_SAMPLING,
    KeySpec("ring-8", "zero", "codebook"),
    RetrievalOptions(0.1, 1.0, 64, border_keys="out", distances="mean"),
    faid_weight=0.0,
    visible_weight=0.0,
    schedule=Schedule(steps=18),
)
"""Of 256 pixels. A neighbour on any side may be known."""
SHOW_O_LARGE = replace(SHOW_O, sampling=SHOW_O_LARGE_SAMPLING, schedule=Schedule(steps=50))
"""Of 512 pixels."""
MEASURED = {"64a77eb5ff6868c4": POCKET, "b27babcc67c325b8": POCKET_O}
"""By the fingerprint of the weights, which is the same in every precision and layout."""


def recommended(checkpoint: Loaded) -> Recommended:
    """The table's entry for a model; its configuration's own sampling where nothing was measured.

    Raises:
        InputError: The configuration recommends values that are not numbers.
    """
    if checkpoint.fingerprint in MEASURED:
        return MEASURED[checkpoint.fingerprint]
    advised = JANUS_PRO
    if not checkpoint.model.order.raster:
        advised = SHOW_O_LARGE if checkpoint.model.grid.size > LARGE else SHOW_O
    return replace(advised, sampling=checkpoint.sampling)
