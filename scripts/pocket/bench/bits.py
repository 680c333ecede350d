"""How probable each method finds the tokens of the benchmark's scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from arrag_engine.checkpoints import Checkpoint
from arrag_engine.evaluate.benchmark import Part, Progress
from arrag_engine.evaluate.journal import Journal
from arrag_engine.likelihood import bits, mixed, model_probabilities, retrieve_truth
from arrag_engine.models.base import Prompt

from .library import Library
from .scenes import BenchScene
from .settings import TEACHER_FORCED
from .tasks import Material


@dataclass(frozen=True)
class Bits:
    """Teacher-forced bits per token of a scene."""

    every: float
    """Of all tokens."""
    things: float
    """Of those that show some of a thing."""
    thing_tokens: int


def likelihoods(
    checkpoint: Checkpoint,
    library: Library,
    material: Material,
    methods: Sequence[str],
    progress: Progress,
    journal: Journal,
) -> dict[Part, list[Bits]]:
    """(split, method) -> bits of each scene. Each is kept in the journal as soon as it is known."""
    found: dict[Part, list[Bits]] = {}
    done, total = 0, len(material.scenes) * len(methods)
    for scene, tokens in zip(material.scenes, material.tokens, strict=True):
        progress("likelihood of a scene", done, total, scene.split)
        own = Own(checkpoint, scene, tokens)
        for method in methods:
            key = ("bits", scene.number, method)
            bits = journal.once(key, lambda own=own, method=method: own.bits(library, method))
            found.setdefault((scene.split, method), []).append(Bits(*bits))
            done += 1
            progress("likelihood of a scene", done, total, f"{scene.split} {method}")
    return found


@dataclass(frozen=True)
class Own:
    """A scene, and what the model alone makes of it."""

    checkpoint: Checkpoint
    scene: BenchScene
    tokens: np.ndarray
    """[N]."""

    @cached_property
    def prompt(self) -> Prompt:
        return self.checkpoint.prompt_encoder.encode(self.scene.truth.text)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Of the scene's own tokens [N]."""
        prompt, tokens = self.prompt, torch.from_numpy(self.tokens)
        p = model_probabilities(
            self.checkpoint.model, prompt.ids, prompt.unconditional, self.tokens
        )
        return p[torch.arange(len(tokens)), tokens].numpy()

    def bits(self, library: Library, method: str) -> tuple[float, float, int]:
        """The fields of `Bits`, with a method."""
        grid, unknown = self.checkpoint.model.grid, bool(self.prompt.unknown)
        split, own = self.scene.split, self.probabilities
        p = with_method(library, method, split, self.tokens, own, unknown)
        covered = self.scene.covers(grid.height, grid.width)
        return bits(p), bits(p, covered), int(covered.sum())


def with_method(
    library: Library,
    method: str,
    split: str,
    tokens: np.ndarray,
    p_model: np.ndarray,
    unknown: bool,
) -> np.ndarray:
    """Probabilities [N] of a scene's tokens [N] under a method, from the model's own [N].

    Args:
        unknown: Whether its caption has words that the model does not know.
    """
    retriever = library.retriever(TEACHER_FORCED[split], method, "", unknown)
    if retriever is None:
        return p_model
    found = retrieve_truth(retriever, tokens, retriever.options, unknown)
    if retriever.options.weight != "auto":
        return mixed(p_model, found, retriever.options.weight)
    calibration = retriever.source.calibration
    assert calibration is not None
    return mixed(p_model, found, calibration.of(found.evidence))
