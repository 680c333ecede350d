"""The wiring of a drawing: model, prompt, settings, index and adapter become tokens.

Whatever is not chosen takes its recommended value here, and the index is restricted to the pictures
that the prompt is about. `plan` does all of it before the work starts; `draw` draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from .bounds import BATCH, POSITION_WEIGHT, WINDOW, check_choice, shown
from .decode import WIDTH, Drawing, KeptPasses, Progress, Recipe, draw_one_by_one, draw_pictures
from .errors import InputError
from .faid import Faid
from .grid import BORDERS, NEIGHBORHOODS
from .index import KEY_SPACES, KeySpec, PatchIndex
from .models.base import Backbone, Loaded, Prompt
from .recommended import Recommended, recommended
from .retrieval import Retriever, calibrated_options, make_retriever
from .settings import (
    AS_BUILT,
    PROMPT,
    RECOMMENDED,
    RetrievalOptions,
    Sampling,
    SamplingChoice,
    Schedule,
)
from .threads import few_threads

LISTED = 5
"""How many words a note lists."""


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

    index: PatchIndex
    only: str = PROMPT
    """Which pictures: a pattern of captions, names and sources, with `{prompt}` for the words of
    the prompt; empty for all."""
    keys: KeyChoice = field(default_factory=KeyChoice)
    weight: float | Literal["auto"] | None = None
    temperature: float | None = None
    neighbours: int | None = None
    duplicates: Literal["first", "sum"] | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.only, str):
            raise InputError(f"only is {shown(self.only)}; write a pattern")
        RetrievalOptions(**self.chosen())

    def chosen(self) -> dict[str, Any]:
        """The options that are not left to the recommendation."""
        names = ("weight", "temperature", "neighbours", "duplicates", "top_p")
        options = {name: getattr(self, name) for name in names}
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class Plan:
    """Everything that is known before the first token."""

    prompt: Prompt
    recipe: Recipe
    notes: tuple[str, ...]
    """Sentences for the person: the values used, the subject, what was skipped and why."""


def plan(
    checkpoint: Loaded,
    text: str,
    sampling: SamplingChoice | None = None,
    layer: Layer | None = None,
    faid: Faid | None = None,
    codebook: np.ndarray | None = None,
    place: Callable[[PatchIndex], PatchIndex] | None = None,
    schedule: Schedule | None = None,
) -> Plan:
    """Work out what a drawing will use.

    Args:
        text: The prompt.
        layer: The index to retrieve from, if any.
        codebook: The model's unit rows [codes, dim]; computed when absent.
        place: Says where the part of the index that is used is searched; see
            `retrieval.where_faster`. It finds the same patches anywhere.
        schedule: Of a model that draws in any order; None = the recommended one.

    Raises:
        InputError: The prompt, a value or the index cannot be used.
    """
    prompt = checkpoint.prompt_encoder.encode(text)
    advised = recommended(checkpoint)
    chosen = (sampling or SamplingChoice()).over(advised.sampling)
    notes = [*prompt.notes, *_unknown_note(prompt), _sampling_note(chosen, advised, sampling)]
    schedule = schedule or advised.schedule
    if not checkpoint.model.order.raster:
        notes.append(_schedule_note(schedule))
    retriever = None
    if layer is not None:
        if codebook is None:
            codebook = checkpoint.model.vq.codebook(checkpoint.model.device)
        retriever, said = _retriever(checkpoint, prompt, layer, advised, faid, codebook)
        notes += said
    recipe = Recipe(
        prompt.ids,
        prompt.unconditional,
        chosen,
        retriever,
        faid,
        schedule=schedule,
        place=place,
    )
    return Plan(prompt, recipe, tuple(notes))


def device_window(device: torch.device) -> int:
    """Tokens to compute per pass where nobody chose a number. On a GPU a window costs next to
    nothing, on a CPU as much as it saves (docs/measurements.md). Never timed at run time: in 16 bit
    the width decides the rounding."""
    return 1 if device.type == "cpu" else WIDTH


def one_by_one(model: Backbone, exact_batch: bool) -> bool:
    """Whether the pictures of a batch are drawn one after the other. In float32 a picture is the
    one drawn alone anyway."""
    return exact_batch and model.dtype != torch.float32


def draw(
    checkpoint: Loaded,
    planned: Plan,
    seeds: Sequence[int],
    window: int = 0,
    progress: Progress | None = None,
    device: torch.device | None = None,
    kept: KeptPasses | None = None,
    exact_batch: bool = False,
) -> Drawing:
    """Draw one picture per seed; see `decode.draw_pictures`.

    Args:
        window: Tokens computed per pass; 0 = the device's.
        exact_batch: In 16 bit, draw the pictures of a batch one after the other, each as it is
            drawn alone. In float32 they are that anyway.
        kept: Passes that former drawings with this model left, for a GPU.

    Raises:
        InputError: As there, or more pictures than fit a batch.
    """
    BATCH.check(len(seeds))
    WINDOW.check(window)
    model = checkpoint.model
    device = device or model.device
    window = window or device_window(device)
    kept = None if device.type == "cpu" else kept
    run = draw_one_by_one if one_by_one(model, exact_batch) else draw_pictures
    with few_threads(model.parameters(), device):
        return run(model, planned.recipe, seeds, window, progress, device, kept)


def _unknown_note(prompt: Prompt) -> list[str]:
    if not prompt.unknown:
        return []
    return [f"The model does not know: {', '.join(prompt.unknown)}."]


def _sampling_note(used: Sampling, advised: Recommended, choice: SamplingChoice | None) -> str:
    own = [
        name
        for name in ("cfg", "temperature", "top_p")
        if choice is None or getattr(choice, name) is None
    ]
    if choice is not None and choice.temperature is not None and "top_p" in own:
        own.remove("top_p")  # see SamplingChoice.over
    values = f"cfg {used.cfg:g}, temperature {used.temperature:g}, top_p {used.top_p:g}"
    if not own:
        return f"Sampling: {values}."
    return f"Sampling: {values} ({', '.join(own)}: {advised.source})."


def _schedule_note(schedule: Schedule) -> str:
    curve = f"pow {schedule.power:g}" if schedule.curve == "pow" else schedule.curve
    return f"Schedule: {schedule.steps} steps, temperature {schedule.temperature:g}, {curve}."


def _retriever(
    checkpoint: Loaded,
    prompt: Prompt,
    layer: Layer,
    advised: Recommended,
    faid: Faid | None,
    codebook: np.ndarray,
) -> tuple[Retriever | None, list[str]]:
    """(how patches are retrieved, what to say of it); None where nothing is to be retrieved."""
    grid = checkpoint.model.grid
    layer.index.check_fits(grid, codebook)
    auto = layer.weight == "auto"
    index, notes = select(layer, prompt, checkpoint.prompt_encoder.has_unknown)
    if index is None:
        return None, notes
    keys = AS_BUILT_KEYS if auto and layer.keys == KeyChoice() else layer.keys
    index, said = _keyed(index, keys, advised.keys)
    base = calibrated_options(index) if auto else advised.retrieval
    if faid is not None and not auto:
        base = replace(base, weight=advised.faid_weight)
    options = replace(base, **layer.chosen())
    notes += [*said, _retrieval_note(index.spec, options, layer, advised)]
    notes += _weight_hint(layer, prompt, options, advised)
    return make_retriever(index, grid, codebook, options, bool(prompt.unknown)), notes


def select(layer: Layer, prompt: Prompt, has_unknown: bool) -> tuple[PatchIndex | None, list[str]]:
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
        assert found.images is not None
        return found, [f"Subject: {len(found.images)} pictures match {pattern!r}."]
    if not index.sources.captioned:
        return index, ["The index has no captions: retrieval uses all of its pictures."]
    beside = pattern.replace(PROMPT, " ").split()
    words = [*(prompt.unknown if has_unknown else [prompt.text]), *beside]
    if not words:
        return None, ["The model knows every word of the prompt: nothing is retrieved."]
    subject = index.sources.about(words)
    if len(subject.images) == 0:
        return None, [f"No caption of the index has {_listed(words)}: nothing is retrieved."]
    count = len(subject.images)
    note = f"Subject: {_listed(subject.words)}; {count} picture{'s' * (count > 1)} of the index."
    return index.restricted(subject.images), [note]


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - LISTED} more" if len(words) > LISTED else ""
    return ", ".join(repr(word) for word in words[:LISTED]) + more


def _keyed(index: PatchIndex, keys: KeyChoice, advised: KeySpec) -> tuple[PatchIndex, list[str]]:
    """The index with the chosen keys; recommended ones only where the index can have them."""
    if keys == KeyChoice():
        if index.searcher.kind != "flat":
            return index, ["Keys: as built; those of an index with a search structure are fixed."]
        if index.vectors is None:
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
    subject = layer.index.sources.about(prompt.unknown)
    if len(subject.images) == 0:
        return []
    return [
        f"The index has {len(subject.images)} pictures of {_listed(subject.words)}, but a weight "
        f"of {weight:g} is too low to show it; {advised.retrieval.weight:g} is recommended."
    ]
