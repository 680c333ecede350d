"""Draws a list of prompts with several methods, as files for other programs to score."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..checkpoints import Checkpoint
from ..faid import Faid
from ..index import AnyIndex, one_file
from ..layers import Layer, select
from ..models.base import Prompt
from ..session import Plan, plan
from ..settings import SamplingChoice, ScheduleChoice
from .benchmark import ADAPTED, Progress, no_progress
from .journal import Journal, digests, unchanged
from .layouts import Layout
from .measures import copied_share, seed_variety
from .pictures import decode_tokens
from .prompt_lists import Entry, at
from .run import draw_tokens

MOST_COMPARED = 20_000
"""Pictures of an index."""


@dataclass(frozen=True)
class Way:
    """How prompts are drawn, whatever the method."""

    checkpoint: Checkpoint
    layers: Sequence[Layer] = ()
    faid: Faid | None = None
    sampling: SamplingChoice | None = None
    schedule: ScheduleChoice | None = None
    negative: str = ""
    place: Callable[[AnyIndex], AnyIndex] | None = None

    def plan(self, text: str, method: str) -> Plan:
        """How a method draws a prompt.

        Raises:
            InputError: The prompt or a value cannot be used.
        """
        faid = self.faid if method in ADAPTED else None
        return plan(
            *(self.checkpoint, text, self.sampling, self._layers(text, method), faid),
            codebook=self._codebook,
            place=self.place,
            negative=self.negative,
            schedule=self.schedule,
        )

    def facts(self, tokens: np.ndarray) -> dict[str, float]:
        """What tokens [seeds, N] of a prompt show: how much seeds differ, and how much equals a
        picture of an index; the latter only of indexes that are compared in no time."""
        found = {}
        if len(tokens) > 1:
            found["variety"] = round(float(seed_variety(tokens).mean()), 4)
        small = [
            one_file(one.index) for one in self.layers if len(one.index.tokens) <= MOST_COMPARED
        ]
        if small:
            shares = [max(copied_share(one, index) for index in small) for one in tokens]
            found["copied"] = round(float(np.mean(shares)), 4)
        return found

    def _layers(self, text: str, method: str) -> Sequence[Layer]:
        if method == "plain":
            return ()
        if method == "auto":
            return [replace(layer, weight="auto") for layer in self.layers]
        if method == "faid":
            return [replace(layer, weight=0.0) for layer in self.layers]
        if method == "control":
            encoder = self.checkpoint.prompt_encoder
            prompt = encoder.encode(text)
            bare = (without_subject(one, prompt, encoder.has_unknown) for one in self.layers)
            return [layer for layer in bare if layer is not None]
        return self.layers

    @cached_property
    def _codebook(self) -> np.ndarray:
        model = self.checkpoint.model
        return model.vq.codebook(model.device)


def without_subject(layer: Layer, prompt: Prompt, has_unknown: bool) -> Layer | None:
    """The control: a layer that may use every picture but those that the prompt is about.

    None where the layer itself retrieves nothing, and where no other picture is left.
    """
    part, _ = select(layer, prompt, has_unknown)
    if part is None:
        return None
    index, about = one_file(layer.index), one_file(part).images
    if about is None:  # the layer uses all pictures
        about = index.sources.about([prompt.text]).images
    rest = np.setdiff1d(np.arange(len(index.tokens)), about)
    return replace(layer, index=index.restricted(rest), only="") if len(rest) else None


def check_entries(way: Way, entries: Sequence[Entry], methods: Sequence[str]) -> list[str]:
    """Encode every prompt and work out the first, before anything is drawn; returns what to say of
    them.

    Raises:
        InputError: A prompt cannot be drawn; the message says where it stands.
    """
    notes = []
    for entry in entries:
        prompt = at(entry.where, lambda text=entry.text: way.checkpoint.prompt_encoder.encode(text))
        notes += [f"{entry.where}: {note}" for note in prompt.notes]
    for method in methods:
        notes += [f"{method}: {note}" for note in way.plan(entries[0].text, method).notes]
    return notes


def draw_entries(
    way: Way,
    entries: Sequence[Entry],
    methods: Sequence[str],
    seeds: Sequence[int],
    batch: int,
    folder: Path,
    layout: Layout,
    journal: Journal,
    progress: Progress = no_progress,
) -> None:
    """Draw each prompt with each method and write its pictures under `folder / method`.

    What the journal has, with its files as they were written, is not drawn again.
    """
    wanted = [(entry, method) for entry in entries for method in methods]
    left = [one for one in wanted if not _done(journal, folder, *one)]
    done = len(wanted) - len(left)
    progress("prompt", done, len(wanted), "")
    for entry, method in left:
        begun = time.perf_counter()
        tokens = draw_tokens(way.checkpoint, way.plan(entry.text, method), seeds, batch)
        images = [Image.fromarray(one) for one in decode_tokens(way.checkpoint, tokens)]
        files = layout(folder / method, entry, images)
        facts = {"seconds": round(time.perf_counter() - begun, 3)} | way.facts(tokens)
        journal.put(key_of(entry, method), _result(folder, entry, files, seeds, facts))
        done += 1
        progress("prompt", done, len(wanted), method)


def key_of(entry: Entry, method: str) -> tuple[str, str | int]:
    """What the journal calls the drawings of a prompt."""
    return method, entry.name or entry.number


def _done(journal: Journal, folder: Path, entry: Entry, method: str) -> bool:
    kept = journal.get(key_of(entry, method))
    return kept is not None and unchanged(folder, kept["files"])


def _result(
    folder: Path,
    entry: Entry,
    files: Sequence[Path],
    seeds: Sequence[int],
    facts: Mapping[str, float],
) -> dict[str, Any]:
    named = {"prompt": entry.text, "seeds": list(seeds)}
    return {**named, **facts, "files": digests(folder, files)}
