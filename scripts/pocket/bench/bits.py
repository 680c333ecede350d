"""How probable each method finds the tokens of the benchmark's scenes.

In raster order each token is predicted from those before it. In any order, from a part of the
picture: of each scene a quarter, a half and three quarters of the tokens are known, chosen by the
number of the scene, and the others are predicted from these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from arrag_engine.checkpoints import Checkpoint
from arrag_engine.decode import Recipe
from arrag_engine.decode.masked import look_up, of_tokens
from arrag_engine.decode.masked import mixed as masked_mixture
from arrag_engine.evaluate.benchmark import Part, Progress
from arrag_engine.evaluate.journal import Journal
from arrag_engine.likelihood import (
    bits,
    masked_probabilities,
    mixed,
    model_probabilities,
    retrieve_truth,
)
from arrag_engine.retrieval import Layers, layers_of

from .library import Library
from .scenes import BenchScene
from .settings import family_of
from .tasks import Material

SHARES = (0.25, 0.5, 0.75)
"""Of the tokens, known in any order."""
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


@torch.inference_mode()
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
    find = in_raster_order if checkpoint.model.order.raster else in_any_order
    parts: dict[Part, list[Bits]] = {}
    done, total = 0, len(scenes) * len(methods)
    for scene, tokens in zip(scenes, material.tokens, strict=True):
        marks = scene.covers(grid.height, grid.width)
        keys = {method: ("bits", scene.number, method) for method in methods}
        left = [method for method in methods if journal.get(keys[method]) is None]
        progress("likelihood of a scene", done + len(methods) - len(left), total, scene.split)
        for method, p, positions in find(checkpoint, library, left, scene, tokens):
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


def in_any_order(
    checkpoint: Checkpoint,
    library: Library,
    methods: Sequence[str],
    scene: BenchScene,
    tokens: np.ndarray,
) -> Iterator[Found]:
    """What the methods make of those of a scene's tokens [N] that are not known."""
    model, prompt = checkpoint.model, checkpoint.prompt_encoder.encode(scene.truth.text)
    use = family_of(model.order).forced[scene.split]
    recipe = Recipe(prompt.ids, prompt.unconditional, use.sampling)
    masks = masks_of(scene, len(tokens))
    canvas, p_model = masked_probabilities(model, recipe, tokens, masks)
    positions = np.concatenate([np.flatnonzero(~mask) for mask in masks])
    for method in methods:
        layers = Layers(layers_of(library.retriever(use, method, "", bool(prompt.unknown))))
        found = []
        for mask, alone in zip(masks, p_model, strict=True):
            p = masked_mixture(alone, layers, look_up(layers, [canvas], mask[None]))[0]
            found.append(of_tokens(p, canvas.tokens)[~mask])
        yield method, np.concatenate(found), positions


def masks_of(scene: BenchScene, size: int) -> list[np.ndarray]:
    """Masks [size] of the tokens of a scene that are known, one for each share. A larger share
    contains the smaller ones."""
    order = np.random.default_rng(scene.number).permutation(size)
    return [order < round(share * size) for share in SHARES]


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
    use = family_of(library.order).forced[split]
    retriever = library.retriever(use, method, "", unknown)
    if retriever is None:
        return p_model
    found = retrieve_truth(retriever, tokens, retriever.options, unknown)
    if retriever.options.weight != "auto":
        return mixed(p_model, found, retriever.options.weight)
    calibration = retriever.source.calibration
    assert calibration is not None
    return mixed(p_model, found, calibration.of(found.evidence))
