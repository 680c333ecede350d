"""How probable each method finds the tokens of the benchmark's scenes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from arrag_engine.checkpoints import Checkpoint
from arrag_engine.evaluate.benchmark import Part, Progress
from arrag_engine.likelihood import bits, mixed, model_probabilities, retrieve_truth

from .library import Library
from .scenes import SPLITS
from .settings import TEACHER_FORCED
from .tasks import Material


def likelihoods(
    checkpoint: Checkpoint,
    library: Library,
    material: Material,
    methods: Sequence[str],
    progress: Progress,
) -> dict[Part, tuple[float, float]]:
    """(split, method) -> teacher-forced bits per token (of all, of those that show a thing)."""
    grid, scenes = checkpoint.model.grid, material.scenes
    probabilities: dict[Part, list[np.ndarray]] = {}
    marks: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    done, total = 0, len(scenes) * len(methods)
    for scene, tokens in zip(scenes, material.tokens, strict=True):
        progress("likelihood of a scene", done, total, scene.split)
        marks[scene.split].append(scene.covers(grid.height, grid.width))
        prompt = checkpoint.prompt_encoder.encode(scene.truth.text)
        p = model_probabilities(checkpoint.model, prompt.ids, prompt.unconditional, tokens)
        true = p[torch.arange(len(tokens)), torch.from_numpy(tokens)].numpy()
        for method in methods:
            mine = with_method(library, method, scene.split, tokens, true, bool(prompt.unknown))
            probabilities.setdefault((scene.split, method), []).append(mine)
            done += 1
            progress("likelihood of a scene", done, total, f"{scene.split} {method}")
    marked = {split: np.concatenate(parts) for split, parts in marks.items() if parts}
    every = {part: np.concatenate(p) for part, p in probabilities.items()}
    return {part: (bits(p), bits(p, marked[part[0]])) for part, p in every.items()}


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
