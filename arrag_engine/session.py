"""The wiring of a drawing: model, prompt, settings, index and adapter become tokens.

`plan` works everything out before the work starts (`layers.py` for the indexes); `draw` draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from .bounds import BATCH, REDRAW, WINDOW
from .decode import (
    WIDTH,
    Drawing,
    Kept,
    KeptPasses,
    Progress,
    Recipe,
    draw_one_by_one,
    draw_pictures,
)
from .editing import BLANK, keep_probable, share_of
from .errors import InputError
from .faid import Faid
from .index import AnyIndex
from .layers import Layer, make_retrievers
from .models.base import Backbone, Loaded, Prompt
from .recommended import Recommended, recommended
from .retrieval import Retriever
from .settings import Sampling, SamplingChoice, Schedule, ScheduleChoice
from .threads import few_threads

NEGATIVE = "negative prompt"
"""What messages call it."""


@dataclass(frozen=True)
class Plan:
    """Everything that is known before the first token."""

    prompt: Prompt
    recipe: Recipe
    notes: tuple[str, ...]
    """Sentences for the person: the values used, the subject, what was skipped and why."""
    redraw: float = 1.0
    """Share of the tokens that are not kept which is drawn anew."""


def plan(
    checkpoint: Loaded,
    text: str,
    sampling: SamplingChoice | None = None,
    layers: Sequence[Layer] = (),
    faid: Faid | None = None,
    codebook: np.ndarray | None = None,
    place: Callable[[AnyIndex], AnyIndex] | None = None,
    negative: str = "",
    kept: Kept | None = None,
    redraw: float = 1.0,
    schedule: ScheduleChoice | None = None,
) -> Plan:
    """Work out what a drawing will use.

    Args:
        text: The prompt.
        layers: The indexes to retrieve from, if any.
        codebook: The model's unit rows [codes, dim]; computed when absent.
        place: Says where the part of the index that is used is searched; see
            `retrieval.where_faster`. It finds the same patches anywhere.
        negative: What guidance leads away from, of any length; blank for nothing in particular.
        kept: The tokens of pictures to edit, and which of them stay.
        redraw: Share of the others that is drawn anew, the least probable under the model first.
        schedule: Of a model that draws in any order.

    Raises:
        InputError: A prompt, a value, the index or what is kept cannot be used.
    """
    prompt = checkpoint.prompt_encoder.encode(text)
    advised = recommended(checkpoint)
    chosen = (sampling or SamplingChoice()).over(advised.sampling)
    told = schedule or ScheduleChoice()
    _check_schedule(checkpoint, told)
    retrievers: Sequence[Retriever] = ()
    found: list[str] = []
    if layers:
        if codebook is None:
            codebook = checkpoint.model.vq.codebook(checkpoint.model.device)
        retrievers, found = make_retrievers(checkpoint, prompt, layers, advised, faid, codebook)
    # Without retrieval, growing costs more than it brings: it is not recommended there.
    grow = advised.schedule.grow and any(one.options.weighs for one in retrievers)
    filled = told.over(replace(advised.schedule, grow=grow))
    unconditional, said = _unconditional(checkpoint, prompt, negative, chosen)
    notes = [*prompt.notes, *_unknown_note(prompt), *said]
    notes.append(_sampling_note(chosen, advised, sampling))
    if not checkpoint.model.order.raster:
        notes.append(_schedule_note(filled))
    notes += found
    notes += _editing_note(checkpoint.model, kept, redraw)
    streams = (prompt.ids, unconditional)
    recipe = Recipe(*streams, chosen, retrievers, faid, kept, filled, place)
    return Plan(prompt, recipe, tuple(notes), redraw)


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
    if planned.recipe.kept is not None:
        planned.recipe.kept.check_fits(model.grid.size, model.vocab, len(seeds))
    with few_threads(model.parameters(), device):
        recipe = keep_probable(model, planned.recipe, planned.redraw, device)
        return run(model, recipe, seeds, window, progress, device, kept)


def _editing_note(model: Backbone, kept: Kept | None, redraw: float) -> list[str]:
    """What an edit draws anew.

    Raises:
        InputError: There is nothing to edit, or the tokens do not fit the model.
    """
    REDRAW.check(redraw)
    if kept is None:
        if redraw < 1:
            raise InputError(
                f"redraw is {redraw:g}, but there are no tokens to keep the rest of; give the "
                "tokens of a picture, or set redraw to 1"
            )
        return []
    kept.check_fits(model.grid.size, model.vocab)
    if kept.mask.all():
        raise InputError(BLANK)
    counts = sorted({share_of(redraw, int(row.sum())) for row in ~kept.mask})
    count = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    chosen = "" if redraw == 1 else ", the least probable under the model"
    return [f"Editing: {count} of {model.grid.size} tokens are drawn anew{chosen}."]


def _unknown_note(prompt: Prompt, which: str = "") -> list[str]:
    if not prompt.unknown:
        return []
    return [f"The model does not know{which}: {', '.join(prompt.unknown)}."]


def _unconditional(
    checkpoint: Loaded, prompt: Prompt, negative: str, sampling: Sampling
) -> tuple[list[int], list[str]]:
    """(ids of the stream that guidance leads away from, what to say of the negative prompt)."""
    if isinstance(negative, str) and not negative.strip():
        return prompt.unconditional, []
    encoded = checkpoint.prompt_encoder.encode(negative, NEGATIVE)
    if sampling.cfg == 1:
        return prompt.unconditional, ["The negative prompt has no effect: guidance (cfg) is 1."]
    return encoded.ids, [*encoded.notes, *_unknown_note(encoded, f", of the {NEGATIVE}")]


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


def _check_schedule(checkpoint: Loaded, choice: ScheduleChoice) -> None:
    """Refuse a schedule for a model that has none.

    Raises:
        InputError: One is chosen.
    """
    if choice != ScheduleChoice() and checkpoint.model.order.raster:
        raise InputError(
            f"steps and schedule are chosen, but {checkpoint.name} draws in raster order, one "
            "token after the other; leave them out, or choose a model that draws in any order"
        )


def _schedule_note(schedule: Schedule) -> str:
    curve = f"pow {schedule.power:g}" if schedule.curve == "pow" else schedule.curve
    sure = "" if schedule.confidence == "mixture" else ", confidence of the model"
    grows = ", growing" if schedule.grow else ""
    values = f"{schedule.steps} steps, temperature {schedule.temperature:g}, {curve}{sure}{grows}"
    return f"Schedule: {values}."
