"""How probable each method finds the tokens of the benchmark's scenes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from arrag_engine.checkpoints import Checkpoint
from arrag_engine.evaluate.benchmark import Part, Progress
from arrag_engine.evaluate.journal import Journal
from arrag_engine.likelihood import bits, mixed, model_probabilities, retrieve_truth

from .library import Library
from .scenes import BenchScene
from .settings import TEACHER_FORCED
from .tasks import Material

Found = tuple[str, np.ndarray, np.ndarray]
"""A method, the probabilities [P] of a scene's own tokens, and their positions [P]."""


@dataclass(frozen=True)
class Bits:
    """Bits per token of a scene."""

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
    grid, scenes = checkpoint.model.grid, material.scenes
    parts: dict[Part, list[Bits]] = {}
    done, total = 0, len(scenes) * len(methods)
    for scene, tokens in zip(scenes, material.tokens, strict=True):
        marks = scene.covers(grid.height, grid.width)
        keys = {method: ("bits", scene.number, method) for method in methods}
        left = [method for method in methods if journal.get(keys[method]) is None]
        progress("likelihood of a scene", done + len(methods) - len(left), total, scene.split)
        for method, p, positions in in_raster_order(checkpoint, library, left, scene, tokens):
            marked = marks[positions]
            journal.put(keys[method], (bits(p), bits(p, marked), int(marked.sum())))
            done += 1
            progress("likelihood of a scene", done + len(methods) - len(left), total, method)
        done += len(methods) - len(left)
        for method in methods:
            parts.setdefault((scene.split, method), []).append(Bits(*journal.get(keys[method])))
    return parts


def in_raster_order(
    checkpoint: Checkpoint,
    library: Library,
    methods: Sequence[str],
    scene: BenchScene,
    tokens: np.ndarray,
) -> Iterator[Found]:
    """What the methods make of a scene's tokens [N], each given those before it."""
    if not methods:
        return
    prompt = checkpoint.prompt_encoder.encode(scene.truth.text)
    p = model_probabilities(checkpoint.janus, prompt.ids, prompt.unconditional, tokens)
    positions = np.arange(len(tokens))
    true = p[torch.from_numpy(positions), torch.from_numpy(tokens)].numpy()
    for method in methods:
        found = with_method(library, method, scene.split, tokens, true, bool(prompt.unknown))
        yield method, found, positions


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
