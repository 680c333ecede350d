"""What there is to draw for a kind, and what retrieval may look at meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file

from ..checkpoints import Checkpoint
from ..codebook import codebook_agreement
from ..errors import InputError
from ..images import to_tensor
from ..index import PatchIndex
from ..models.pixels import to_uint8
from ..retrieval import Retriever, calibrated_options, make_retriever
from .prompts import BenchPrompt
from .scenes import BenchScene
from .settings import COMPLETION, GIVEN_ROWS, Use


@dataclass(frozen=True)
class Task:
    """A picture to draw and judge."""

    prompt: BenchPrompt
    given: np.ndarray | None = None
    """Its first tokens."""


def make_tasks(
    kind: str,
    prompts: Sequence[BenchPrompt],
    scenes: Sequence[BenchScene],
    tokens: np.ndarray,
    width: int,
    limit: int | None,
) -> list[Task]:
    """The tasks of a kind, at most `limit`, evenly taken.

    Args:
        tokens: Of the scenes [scenes, N].
        width: Tokens in a row.
    """
    if kind == COMPLETION:
        unseen = [i for i, scene in enumerate(scenes) if scene.split == "unseen"]
        return [
            Task(replace(scenes[i].truth, kind=COMPLETION), tokens[i, : GIVEN_ROWS * width])
            for i in _evenly(unseen, limit)
        ]
    return [Task(prompt) for prompt in _evenly([p for p in prompts if p.kind == kind], limit)]


def _evenly(items: Sequence, limit: int | None) -> list:
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]


def scene_tokens(checkpoint: Checkpoint, scenes: Sequence[BenchScene], folder: Path) -> np.ndarray:
    """Tokens [scenes, N] of the benchmark's scenes.

    A model may have learnt one code for each of the patches that it saw, where its encoder chooses
    among several for the same pixels. Such tokens are kept in `tokens.safetensors`, with the
    codebook that they are meant for; for another model the encoder decides.
    """
    model = checkpoint.model
    kept = load_file(folder / "tokens.safetensors")
    if codebook_agreement(model.vq.codebook(model.device), kept["codebook"]).same:
        return kept["tokens"][[scene.number for scene in scenes]].astype(np.int64)
    return encode_pixels(checkpoint, np.stack([scene.pixels for scene in scenes]))


@torch.inference_mode()
def encode_pixels(checkpoint: Checkpoint, pixels: np.ndarray) -> np.ndarray:
    """Tokens [B, N] of pictures [B, H, W, 3] uint8."""
    model = checkpoint.model
    images = [to_tensor([Image.fromarray(p)]).to(model.device) for p in pixels]
    return torch.cat([model.vq.encode(image)[0].flatten(1) for image in images]).cpu().numpy()


@torch.inference_mode()
def decode_tokens(checkpoint: Checkpoint, tokens: np.ndarray) -> np.ndarray:
    """Pictures [B, H, W, 3] uint8 of tokens [B, N]."""
    model, grid = checkpoint.model, checkpoint.model.config.grid
    codes = torch.from_numpy(tokens).view(-1, grid.height, grid.width).to(model.device)
    pixels = [to_uint8(model.vq.decode(part)) for part in codes.split(1)]
    return torch.cat(pixels).cpu().numpy()


class Library:
    """The index as each use and task wants it; what was made once is kept.

    Raises:
        InputError: The index is for another model.
    """

    def __init__(self, checkpoint: Checkpoint, index: PatchIndex) -> None:
        self.index = index
        self.grid = checkpoint.model.config.grid
        self.codebook = checkpoint.model.vq.codebook(checkpoint.model.device)
        index.check_fits(self.grid, self.codebook)
        self.names = np.array([source.name for source in index.sources])
        self._rekeyed: dict = {}
        self._views: dict = {}

    def of_parts(self, parts: Sequence[str]) -> np.ndarray:
        """Numbers of the pictures whose names begin with one of `parts`."""
        return np.flatnonzero([name.startswith(tuple(parts)) for name in self.names.tolist()])

    def view(self, use: Use, control: bool, word: str) -> PatchIndex:
        """The part of the index that a task of a use may look at.

        Raises:
            InputError: The index has no picture of that part.
        """
        by_word = use.by_word and not control
        key = (use.spec, use.control if control else use.parts, word if by_word else "")
        if key not in self._views:
            images = self.of_parts(key[1])
            if by_word:
                images = np.intersect1d(images, self.index.sources.matching(word, ("caption",)))
            if len(images) == 0:
                wanted = f" with {word!r} in its caption" if by_word else ""
                raise InputError(
                    f"the index has no picture in {', '.join(key[1]) or 'it'}{wanted}; "
                    "evaluate with the index that scripts/pocket/make.py builds"
                )
            self._views[key] = self._keyed(use).restricted(images)
        return self._views[key]

    def _keyed(self, use: Use) -> PatchIndex:
        if use.spec is None:
            return self.index
        if use.spec not in self._rekeyed:
            self._rekeyed[use.spec] = self.index.rekeyed(use.spec)
        return self._rekeyed[use.spec]

    def retriever(
        self, use: Use, method: str, word: str, unknown_words: bool = False
    ) -> Retriever | None:
        """What a method looks up for a task."""
        if method == "plain":
            return None
        options = use.options
        if method == "auto":
            options = calibrated_options(self.index)
        if method == "faid":
            options = replace(options, weight=0.0)
        view = self.view_of(use, method, word)
        return make_retriever(view, self.grid, self.codebook, options, unknown_words)

    def view_of(self, use: Use, method: str, word: str) -> PatchIndex:
        """The part of the index that a method may look at."""
        if method == "auto":
            use = replace(use, spec=None, parts=("",), by_word=False)  # as it was calibrated
        return self.view(use, method == "control", word)
