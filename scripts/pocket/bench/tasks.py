"""What there is to draw for a kind, and the tokens of the scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file

from arrag_engine.checkpoints import Checkpoint
from arrag_engine.codebook import codebook_agreement
from arrag_engine.evaluate.benchmark import Progress, Task, no_progress
from arrag_engine.images import to_tensor

from .prompts import BenchPrompt, of_kind
from .scenes import BenchScene
from .settings import COMPLETION, GIVEN_ROWS

PocketTask = Task[BenchPrompt]


@dataclass(frozen=True)
class Material:
    """What tasks are made of."""

    prompts: Sequence[BenchPrompt] = ()
    scenes: Sequence[BenchScene] = ()
    tokens: np.ndarray = field(default_factory=lambda: np.zeros((0, 1), np.int64))
    """Of the scenes [scenes, N]."""


def make_tasks(kind: str, material: Material, width: int) -> list[PocketTask]:
    """The tasks of a kind.

    Args:
        width: Tokens in a row.
    """
    if kind != COMPLETION:
        return [Task(prompt.text, prompt) for prompt in of_kind(material.prompts, kind)]
    return [
        Task(scene.truth.text, replace(scene.truth, kind=kind), tokens[: GIVEN_ROWS * width])
        for scene, tokens in zip(material.scenes, material.tokens, strict=True)
        if scene.split == "unseen"
    ]


def scene_tokens(
    checkpoint: Checkpoint,
    scenes: Sequence[BenchScene],
    folder: Path,
    progress: Progress = no_progress,
) -> np.ndarray:
    """Tokens [scenes, N] of the benchmark's scenes.

    A model may have learnt one code for each of the patches that it saw, where its encoder chooses
    among several for the same pixels. Such tokens are kept in `tokens.safetensors`, with the
    codebook that they are meant for; for another model the encoder decides.
    """
    model = checkpoint.model
    kept = load_file(folder / "tokens.safetensors")
    if codebook_agreement(model.vq.codebook(model.device), kept["codebook"]).same:
        return kept["tokens"][[scene.number for scene in scenes]].astype(np.int64)
    return encode_pixels(checkpoint, [scene.pixels for scene in scenes], progress)


@torch.inference_mode()
def encode_pixels(
    checkpoint: Checkpoint, pixels: Sequence[np.ndarray], progress: Progress = no_progress
) -> np.ndarray:
    """Tokens [B, N] of B pictures [H, W, 3] uint8."""
    model = checkpoint.model
    tokens = [torch.zeros((0, model.grid.size), dtype=torch.long, device=model.device)]
    for number, picture in enumerate(pixels, 1):
        image = to_tensor([Image.fromarray(picture)]).to(model.device)
        tokens.append(model.vq.encode(image)[0].flatten(1))
        progress("scene encoded", number, len(pixels), "")
    return torch.cat(tokens).cpu().numpy()
