"""What a person chooses of each index becomes a retriever: pictures, keys, weight, steering.

Whatever is not chosen takes its recommended value here, and an index is restricted to the pictures
that the prompt is about.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

from .bounds import POSITION_WEIGHT, check_choice, shown
from .errors import InputError
from .faid import Faid
from .grid import BORDERS, NEIGHBORHOODS
from .index import EXACT, KEY_SPACES, AnyIndex, KeySpec, PatchIndex, ShardedLookup
from .models.base import Loaded, Prompt
from .recommended import Recommended
from .retrieval import Retriever, Steering, calibrated_options, make_retriever, suited
from .settings import AS_BUILT, PROMPT, RECOMMENDED, BorderKeys, Distances, RetrievalOptions

LISTED = 5
"""How many words a note lists."""
ROUNDING = 1e-9
"""By which weights may exceed 1 together."""


Searched = dict[tuple[int, Hashable], AnyIndex]
"""What the layers of a drawing search, by index, pictures and keys: layers that search the same
share it, for its search structure is made at the first look-up."""


@dataclass(frozen=True)
class KeyChoice:
    """How patches are found, each field chosen by itself."""

    neighborhood: str = RECOMMENDED
    borders: str = RECOMMENDED
    space: str = RECOMMENDED
    position_weight: float | None = None
    """None goes with the neighbourhood: as built, or else recommended."""

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("neighborhood", self.neighborhood, tuple(NEIGHBORHOODS)),
            ("borders", self.borders, BORDERS),
            ("key space", self.space, KEY_SPACES),
        ):
            check_choice(name, value, (*choices, AS_BUILT, RECOMMENDED))
        if self.position_weight is not None:
            POSITION_WEIGHT.check(self.position_weight)

    def spec(self, built: KeySpec, advised: KeySpec) -> KeySpec:
        """The keys that are meant."""
        bases = {AS_BUILT: built, RECOMMENDED: advised}
        chosen: dict[str, Any] = {}
        for name in ("neighborhood", "borders", "space"):
            choice = getattr(self, name)
            chosen[name] = getattr(bases[choice], name) if choice in bases else choice
        weight = self.position_weight
        if weight is None:
            weight = bases.get(self.neighborhood, advised).position_weight
        return KeySpec(position_weight=weight, **chosen)


AS_BUILT_KEYS = KeyChoice(AS_BUILT, AS_BUILT, AS_BUILT)


@dataclass(frozen=True, eq=False)
class Layer:
    """An index at work in a drawing. What is None takes the recommended value."""

    index: AnyIndex
    only: str = PROMPT
    """Which pictures: a pattern of captions, names and sources, with `{prompt}` for the words of
    the prompt; empty for all."""
    keys: KeyChoice = field(default_factory=KeyChoice)
    weight: float | Literal["auto"] | None = None
    temperature: float | None = None
    neighbours: int | None = None
    duplicates: Literal["first", "sum"] | None = None
    top_p: float | None = None
    include: str = ""
    """Patterns of captions, names and sources, one a line: only pictures that match one of them.
    `=name` means the picture of that name alone."""
    exclude: str = ""
    """The same, for pictures that are left out."""
    steering: Steering = field(default_factory=Steering)
    border_keys: BorderKeys | None = None
    """This and `distances`: of models that draw in any order alone."""
    distances: Distances | None = None

    def __post_init__(self) -> None:
        for name, kind, advice in (
            ("index", (PatchIndex, ShardedLookup), "give what load_index returns"),
            ("keys", KeyChoice, "give a KeyChoice"),
            ("steering", Steering, "give a Steering"),
        ):
            if not isinstance(getattr(self, name), kind):
                raise InputError(f"{name} is {shown(getattr(self, name))}; {advice}")
        for name in ("only", "include", "exclude"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise InputError(f"{name} is {shown(value)}; write a pattern")
        RetrievalOptions(**self.chosen())

    def chosen(self) -> dict[str, Any]:
        """The options that are not left to the recommendation."""
        options = {one.name: getattr(self, one.name) for one in fields(RetrievalOptions)}
        return {name: value for name, value in options.items() if value is not None}


def make_retrievers(
    checkpoint: Loaded,
    prompt: Prompt,
    layers: Sequence[Layer],
    advised: Recommended,
    faid: Faid | None,
    codebook: np.ndarray,
) -> tuple[tuple[Retriever, ...], list[str]]:
    """(the layers as they work in a drawing, what to say of them). A layer for which nothing is to
    be retrieved drops out.

    Args:
        codebook: The model's unit rows [codes, dim].

    Raises:
        InputError: An index or a value cannot be used, or the weights exceed 1 together.
    """
    working: list[tuple[Layer, Retriever]] = []
    notes: list[str] = []
    searched: Searched = {}
    for number, layer in enumerate(layers, start=1):
        retriever, said = _retriever(checkpoint, prompt, layer, advised, faid, codebook, searched)
        notes += [f"Layer {number}: {note}" for note in said] if len(layers) > 1 else said
        if retriever is not None:
            working.append((layer, replace(retriever, number=number - 1)))
    check_weights([one for layer, one in working if layer.weight is not None])
    retrievers, said = _share_weights(working)
    return tuple(retrievers), [*notes, *said]


def check_weights(chosen: Sequence[Retriever]) -> None:
    """Refuse weights that exceed 1 together.

    Raises:
        InputError: They do, at some position; with the largest equal weights that fit.
    """
    if not chosen:
        return
    grid = chosen[0].source.grid
    sums = _sums(chosen, [one.largest_weights for one in chosen])  # [moments, N]
    moment, worst = map(int, np.unravel_index(sums.argmax(), sums.shape))
    total = sums[moment]
    if total[worst] <= 1 + ROUNDING:
        return
    parts = [float(one.largest_weights[worst] * _moments(one)[moment]) for one in chosen]
    row, column = divmod(worst, grid.width)
    listed = " + ".join(f"{part:g}" for part in parts if part)
    fits = _largest_equal(chosen, grid.size)
    advice = f"choose at most {fits:g} for each" if fits else "choose numbers in place of auto"
    raise InputError(
        f"the weights of {sum(map(bool, parts))} layers add up to {total[worst]:g} in row {row}, "
        f"column {column} ({listed}); {advice}, or regions that do not overlap"
    )


def _largest_equal(chosen: Sequence[Retriever], size: int) -> float:
    """The largest weight that all layers with a chosen number can have, rounded down; 0 where
    there is none."""
    fixed = [one for one in chosen if one.options.weight != "auto"]
    left = 1 - _sum_of_weights([one for one in chosen if one.options.weight == "auto"], size)
    spans = np.zeros(size)
    if fixed:
        factors = [one.active if one.factors is None else one.factors for one in fixed]
        spans = _sums(fixed, factors).max(axis=0)
    used = spans > 0
    fits = float((left[used] / spans[used]).min(initial=1.0 if fixed else 0.0))
    return math.floor(max(fits, 0.0) * 1000 + ROUNDING) / 1000


def _sum_of_weights(retrievers: Sequence[Retriever], size: int) -> np.ndarray:
    """Σ of the largest λ [N], at the moment when it is largest."""
    if not retrievers:
        return np.zeros(size)
    return _sums(retrievers, [one.largest_weights for one in retrievers]).max(axis=0)


def _sums(retrievers: Sequence[Retriever], each: Sequence[np.ndarray]) -> np.ndarray:
    """Σ of numbers [N] of each layer at every moment of a drawing [moments, N]; a single moment
    where no layer changes with time."""
    if all(one.span is None for one in retrievers):
        return np.sum(each, axis=0)[None]
    pairs = zip(retrievers, each, strict=True)
    return np.sum([np.outer(_moments(one), numbers) for one, numbers in pairs], axis=0)


def _moments(one: Retriever) -> np.ndarray:
    """Factors of a layer's weight when 0, 1, 2, … tokens are known."""
    return one.moments(np.arange(one.source.grid.size))


def _share_weights(
    working: Sequence[tuple[Layer, Retriever]],
) -> tuple[list[Retriever], list[str]]:
    """The layers, those with a recommended weight sharing what the chosen ones leave at each
    position, and a note if that makes them smaller."""
    chosen = [one for layer, one in working if layer.weight is not None]
    advised = [one for layer, one in working if layer.weight is None]
    if not advised or len(working) == 1:
        return [one for _, one in working], []
    size = advised[0].source.grid.size
    wanted = _sum_of_weights(advised, size)
    left = (1 - _sum_of_weights(chosen, size)).clip(min=0)
    scale = np.divide(left, wanted, out=np.ones(size), where=wanted > left)
    if (scale == 1).all():
        return [one for _, one in working], []
    shared = [one if layer.weight is not None else _scaled(one, scale) for layer, one in working]
    return shared, [
        "Where layers overlap, the recommended weights are made smaller, so that all add up to 1."
    ]


def _scaled(one: Retriever, scale: np.ndarray) -> Retriever:
    factors = scale if one.factors is None else one.factors * scale
    return replace(one, factors=factors)


def _retriever(
    checkpoint: Loaded,
    prompt: Prompt,
    layer: Layer,
    advised: Recommended,
    faid: Faid | None,
    codebook: np.ndarray,
    searched: Searched,
) -> tuple[Retriever | None, list[str]]:
    """(how patches are retrieved, what to say of it); None where nothing is to be retrieved.

    Args:
        searched: What the layers before search; this one's part is added.
    """
    grid, order = checkpoint.model.grid, checkpoint.model.order
    layer.index.check_fits(grid, codebook)
    _check_order(checkpoint, layer)
    auto = layer.weight == "auto"
    index, notes = select(layer, prompt, checkpoint.prompt_encoder.has_unknown)
    if index is None:
        return None, notes
    index, said = _filtered(index, layer)
    keys = AS_BUILT_KEYS if auto and layer.keys == KeyChoice() else layer.keys
    index, more = keyed(index, keys, advised.keys)
    index = index if order.raster else index.by_bits()
    index = searched.setdefault((id(layer.index), index.view), index)
    base = calibrated_options(index) if auto else advised.retrieval
    if faid is not None and not auto:
        base = replace(base, weight=advised.faid_weight)
    options = replace(suited(base, index), **layer.chosen())
    notes += [*said, *more, _retrieval_note(index.spec, options, layer, advised)]
    if not order.raster:
        notes.append(f"Border keys {options.border_keys}, distances: {options.distances}.")
    notes += _weight_hint(layer, prompt, options, advised)
    retriever = make_retriever(
        *(index, grid, codebook, options, bool(prompt.unknown), layer.steering), order=order
    )
    if retriever.idle:
        raise InputError(
            "a layer works at no position of the picture; widen its start and end, its rows or its "
            "region"
        )
    return retriever, notes


def _check_order(checkpoint: Loaded, layer: Layer) -> None:
    """Refuse what only models that draw in any order have.

    Raises:
        InputError: It is chosen for a model that draws in raster order.
    """
    if checkpoint.model.order.raster and (layer.border_keys or layer.distances):
        raise InputError(
            f"border keys or distances are chosen, but {checkpoint.name} draws in raster order "
            "and knows all neighbours of a patch; leave them out, or choose a model that draws in "
            "any order"
        )


def _filtered(index: AnyIndex, layer: Layer) -> tuple[AnyIndex, list[str]]:
    """(the index with the included and without the excluded sources, what to say of it).

    Raises:
        InputError: No picture is left.
    """
    included, excluded = _lines(layer.include), _lines(layer.exclude)
    if not included and not excluded:
        return index, []
    patterns = [*included, *excluded]
    idle = [one for one, n in zip(patterns, index.matches(patterns), strict=True) if n == 0]
    try:
        view = index.filtered(included, excluded)
    except InputError as error:
        raise InputError(
            f"include and exclude leave none of the {index.pictures} pictures of the index; change "
            f"the patterns ({_listed(patterns)})"
        ) from error
    notes = [f"Sources: {view.pictures} of {index.pictures} pictures, by include and exclude."]
    if idle:
        notes.append(f"No picture of the index matches {_listed(idle)} of include or exclude.")
    return view, notes


def _lines(patterns: str) -> list[str]:
    return [line.strip() for line in patterns.splitlines() if line.strip()]


def select(layer: Layer, prompt: Prompt, has_unknown: bool) -> tuple[AnyIndex | None, list[str]]:
    """(the part of the index to retrieve from, what to say of it); None where there is nothing.

    A model that has unknown words needs retrieval for these alone: what it knows it draws better
    without.

    Args:
        has_unknown: Whether there are words that the model's tokenizer does not know.

    Raises:
        InputError: A pattern without `{prompt}` matches no picture.
    """
    index, pattern = layer.index, layer.only.strip()
    if not pattern or (layer.weight == "auto" and pattern == PROMPT):
        return index, []
    if PROMPT not in pattern:
        found = index.matching(pattern)
        return found, [f"Subject: {found.pictures} pictures match {pattern!r}."]
    if not index.sources.captioned:
        return index, ["The index has no captions: retrieval uses all of its pictures."]
    beside = pattern.replace(PROMPT, " ").split()
    words = [*(prompt.unknown if has_unknown else [prompt.text]), *beside]
    if not words:
        return None, ["The model knows every word of the prompt: nothing is retrieved."]
    rarest, found = index.about(words)
    if found is None:
        return None, [f"No caption of the index has {_listed(words)}: nothing is retrieved."]
    count = found.pictures
    note = f"Subject: {_listed(rarest)}; {count} picture{'s' * (count > 1)} of the index."
    return found, [note]


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - LISTED} more" if len(words) > LISTED else ""
    return ", ".join(repr(word) for word in words[:LISTED]) + more


def keyed(index: AnyIndex, keys: KeyChoice, advised: KeySpec) -> tuple[AnyIndex, list[str]]:
    """The index with the chosen keys; recommended ones only where the index can have them."""
    if keys == KeyChoice():
        if index.structure not in EXACT:
            return index, ["Keys: as built; those of an index with a search structure are fixed."]
        if not index.exact_vectors:
            advised = replace(advised, space="codebook")
    return index.rekeyed(keys.spec(index.spec, advised)), []


def _retrieval_note(
    spec: KeySpec, options: RetrievalOptions, layer: Layer, advised: Recommended
) -> str:
    weight = options.weight if options.weight == "auto" else f"{options.weight:g}"
    own = [name for name in ("weight", "temperature", "neighbours") if getattr(layer, name) is None]
    source = f" ({', '.join(own)}: {advised.source})" if own and weight != "auto" else ""
    return (
        f"Retrieval: weight {weight}, temperature {options.temperature:g}, {options.neighbours} "
        f"neighbours, keys {spec}{source}."
    )


def _weight_hint(
    layer: Layer, prompt: Prompt, options: RetrievalOptions, advised: Recommended
) -> list[str]:
    """A hint where the index has a subject that the model does not know, and λ hides it."""
    weight = options.weight
    if weight == "auto" or weight >= advised.visible_weight or not prompt.unknown:
        return []
    rarest, found = layer.index.about(prompt.unknown)
    if found is None:
        return []
    return [
        f"The index has {found.pictures} pictures of {_listed(rarest)}, but a weight "
        f"of {weight:g} is too low to show it; {advised.retrieval.weight:g} is recommended."
    ]
