"""What is drawn with which settings: one entry for each use of retrieval, for models of either
drawing order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from arrag_engine.grid import DrawingOrder
from arrag_engine.index import KeySpec
from arrag_engine.settings import RetrievalOptions, Sampling, Schedule

from .prompts import CONCEPT, KINDS, STYLE

if TYPE_CHECKING:  # the flags of the suite load no PyTorch
    from arrag_engine.retrieval import Steering

COMPLETION = "completion"
"""Unseen things whose top rows are given."""


@dataclass(frozen=True)
class Use:
    """How pictures of some kinds are drawn, and with which part of the index."""

    kinds: tuple[str, ...]
    sampling: Sampling
    options: RetrievalOptions
    spec: KeySpec | None = None
    """Keys; None: as the index was built."""
    parts: tuple[str, ...] = ("",)
    """What the names of the index's pictures begin with; any of them."""
    control: tuple[str, ...] = ("known/",)
    """The same for the control: pictures that lack the things, or the style, asked for."""
    by_word: bool = False
    """Only pictures whose caption names the thing asked for; the control has none of these."""
    blank: bool = False
    """The model is given no caption: it does not know the word."""
    schedule: Schedule = field(default_factory=Schedule)
    """Of models that draw in any order."""
    steering: Steering | None = None


_KEYS = KeySpec("causal-8", "zero", "encoder", 2.0)
_WIDE_KEYS = KeySpec("causal-24", "zero", "encoder", 2.0)
"""They hold a drawn thing together better than those that are best for likelihood."""

GENERAL = Use(
    KINDS,
    Sampling(cfg=1.5, temperature=0.2),
    RetrievalOptions(weight=0.05, temperature=0.05, neighbours=16),
    control=("unseen/",),
)
"""Things the model knows."""

CONCEPTS = Use(
    (CONCEPT,),
    Sampling(cfg=1.0, temperature=0.5),
    RetrievalOptions(weight=0.9, temperature=0.3, neighbours=16),
    _WIDE_KEYS,
    parts=("unseen/",),
    by_word=True,
    blank=True,
)
"""Things that only the index has, asked for by name. A lower τ copies more and is right more often,
a higher one the other way round."""

COMPLETIONS = Use(
    (COMPLETION,),
    Sampling(cfg=1.0, temperature=0.3),
    RetrievalOptions(weight=1.0, temperature=0.3, neighbours=64),
    replace(_WIDE_KEYS, position_weight=4.0),
    blank=True,
)
"""Things that only the index has, from their top rows."""

STYLES = Use(
    (STYLE,),
    Sampling(cfg=1.0, temperature=0.3),
    RetrievalOptions(weight=0.95, temperature=0.6, neighbours=64),
    _WIDE_KEYS,
    parts=("style/",),
    by_word=True,
    blank=True,
)
"""A style that only the index has."""


def _forced(weight: float, control: tuple[str, ...]) -> Use:
    options = RetrievalOptions(weight, 0.5, 256)
    return Use((), Sampling(1.0), options, _KEYS, control=control)


TEACHER_FORCED = {
    "seen": _forced(0.05, ("unseen/",)),
    "unseen": _forced(0.4, ("known/",)),
    "style": _forced(0.2, ("known/", "unseen/")),
}
"""How likelihood is measured on each split of the scenes; captions are as they are."""

USES = (GENERAL, CONCEPTS, COMPLETIONS, STYLES)

_RING = KeySpec("ring-8", "zero", "codebook", 24.0)
"""Where few neighbours are known, the place tells a thing from the page around it."""


def _around(weight: float) -> RetrievalOptions:
    return RetrievalOptions(weight, 0.3, 16, border_keys="in", distances="mean")


def _in_any_order(use: Use, cfg: float, weight: float) -> Use:
    options, schedule = _around(weight), Schedule(steps=16, grow=True)
    return replace(use, sampling=Sampling(cfg), options=options, spec=_RING, schedule=schedule)


MASKED_USES = (
    _in_any_order(GENERAL, 2.0, 0.05),
    _in_any_order(CONCEPTS, 1.0, 1.0),
    _in_any_order(COMPLETIONS, 1.0, 1.0),
    _in_any_order(STYLES, 1.0, 1.0),
)
"""The same uses with models that draw in any order, chosen by drawing with `pocket-o`."""


def _forced_around(use: Use) -> Use:
    assert use.options.weight != "auto"
    return replace(use, options=_around(use.options.weight), spec=_RING)


MASKED_FORCED = {split: _forced_around(use) for split, use in TEACHER_FORCED.items()}
"""Likelihood with the weights of raster order."""


@dataclass(frozen=True)
class Family:
    """The settings of the models of a drawing order."""

    uses: tuple[Use, ...]
    forced: Mapping[str, Use]
    """How likelihood is measured on each split of the scenes."""


FAMILIES = {True: Family(USES, TEACHER_FORCED), False: Family(MASKED_USES, MASKED_FORCED)}
"""By whether the order is raster order."""


def family_of(order: DrawingOrder) -> Family:
    return FAMILIES[order.raster]


EVERY_KIND = tuple(kind for use in USES for kind in use.kinds)
GIVEN_ROWS = 5
"""Of a completion, on a grid of 12 rows."""


def vary(use: Use, values: Mapping[str, Any], built: KeySpec) -> Use:
    """A use with other values, by the names of `eval sweep`.

    Args:
        built: The keys of the index, where the use has none of its own.
    """
    options, sampling, spec = use.options, use.sampling, use.spec
    for name, value in values.items():
        if name == "top-k":
            sampling = replace(sampling, top_k=value)
        elif name == "neighborhood":
            spec = replace(spec or built, neighborhood=value)
        else:
            options = replace(options, **{name.removeprefix("retrieval-"): value})
    return replace(use, options=options, sampling=sampling, spec=spec)
