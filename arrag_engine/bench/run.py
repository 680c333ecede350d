"""Draw the tasks of a benchmark with several methods and score the pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch

from ..bounds import MAX_BATCH
from ..checkpoints import Checkpoint
from ..decode import Recipe, draw_pictures
from ..faid import Faid
from ..likelihood import bits, mixed, model_probabilities, retrieve_truth
from ..models.janus.prompt import Prompt
from .measures import copied_share
from .prompts import KINDS, Verdict, judge
from .scenes import SPLITS, BenchScene
from .scorer import Scorer
from .settings import ADAPTED, TEACHER_FORCED, USES, Use
from .tasks import Library, Task, decode_tokens

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Score:
    """How one method did on one kind."""

    right: tuple[float, ...]
    """Share of right pictures, one for each seed."""
    objects: tuple[float, ...]
    """Share of the things asked for that are there, whatever their colour, place and style."""
    copied: float | None
    """Mean share of tokens equal to those of the nearest picture of the index."""


@dataclass
class Pictures:
    """What a method drew for a kind."""

    captions: list[str] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    """[N]."""
    pixels: list[np.ndarray] = field(default_factory=list)
    """[H, W, 3] uint8."""
    verdicts: list[Verdict] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    copied: list[float] = field(default_factory=list)

    def extend(self, other: Pictures) -> None:
        """Add another kind's."""
        for name in (f.name for f in fields(self)):
            getattr(self, name).extend(getattr(other, name))

    def score(self) -> Score:
        seeds = sorted(set(self.seeds))

        def per_seed(values: Sequence[float]) -> tuple[float, ...]:
            return tuple(
                float(np.mean([v for v, s in zip(values, self.seeds, strict=True) if s == seed]))
                for seed in seeds
            )

        right = per_seed([float(v.right) for v in self.verdicts])
        objects = per_seed([v.objects for v in self.verdicts])
        return Score(right, objects, float(np.mean(self.copied)) if self.copied else None)


@dataclass(frozen=True)
class Bench:
    """What every run needs."""

    checkpoint: Checkpoint
    library: Library
    scorer: Scorer
    faid: Faid | None = None

    def draw(
        self,
        use: Use,
        method: str,
        tasks: Sequence[Task],
        seeds: Sequence[int],
        progress: Progress = lambda label: None,
    ) -> Pictures:
        """Draw every task once for each seed. `progress` is called after each task."""
        drawn = Pictures()
        for task in tasks:
            tokens = self.tokens(use, method, task, seeds)
            pixels = decode_tokens(self.checkpoint, tokens)
            drawn.captions += [task.prompt.text] * len(seeds)
            drawn.tokens += list(tokens)
            drawn.pixels += list(pixels)
            drawn.verdicts += [judge(task.prompt, found) for found in self.scorer.detect(pixels)]
            drawn.seeds += list(seeds)
            if method != "plain":
                index = self.library.view_of(use, method, _word(task))
                drawn.copied += [copied_share(t, index) for t in tokens]
            progress(f"{task.prompt.kind} {method}")
        return drawn

    @property
    def grid(self) -> tuple[int, int]:
        grid = self.checkpoint.model.config.grid
        return grid.height, grid.width

    def tokens(self, use: Use, method: str, task: Task, seeds: Sequence[int]) -> np.ndarray:
        """Tokens [seeds, N] of a task drawn once for each seed."""
        # The calibrated weight asks whether the model knows the words, so it is told them.
        prompt = self._prompt(replace(use, blank=False) if method == "auto" else use, task)
        retriever = self.library.retriever(use, method, _word(task), bool(prompt.unknown))
        faid = self.faid if method in ADAPTED else None
        recipe = Recipe(prompt.ids, prompt.unconditional, use.sampling, retriever, faid, task.given)
        parts = []
        for first in range(0, len(seeds), MAX_BATCH):
            batch = seeds[first : first + MAX_BATCH]
            drawing = draw_pictures(self.checkpoint.model, recipe, batch)
            parts.append(drawing.tokens.flatten(1).numpy())
        return np.concatenate(parts)

    def _prompt(self, use: Use, task: Task) -> Prompt:
        encoder = self.checkpoint.prompt_encoder
        return encoder.blank() if use.blank else encoder.encode(task.prompt.text)

    def likelihoods(
        self, tokens: np.ndarray, scenes: Sequence[BenchScene], methods: Sequence[str]
    ) -> dict[tuple[str, str], tuple[float, float]]:
        """(split, method) -> teacher-forced bits per token (of all, of those that show a thing)."""
        probabilities: dict[tuple[str, str], list[np.ndarray]] = {}
        marks: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        for scene, grid in zip(scenes, tokens, strict=True):
            marks[scene.split].append(scene.covers(*self.grid))
            prompt = self.checkpoint.prompt_encoder.encode(scene.truth.text)
            p = model_probabilities(self.checkpoint.model, prompt.ids, prompt.unconditional, grid)
            true = p[torch.arange(len(grid)), torch.from_numpy(grid)].numpy()
            for method in methods:
                mine = self._mixed(method, scene.split, grid, true, bool(prompt.unknown))
                probabilities.setdefault((scene.split, method), []).append(mine)
        return {
            (split, method): (
                bits(np.concatenate(ps)),
                bits(np.concatenate(ps), np.concatenate(marks[split])),
            )
            for (split, method), ps in probabilities.items()
        }

    def _mixed(
        self, method: str, split: str, grid: np.ndarray, true: np.ndarray, unknown: bool
    ) -> np.ndarray:
        use = TEACHER_FORCED[split]
        retriever = self.library.retriever(use, method, "", unknown)
        if retriever is None:
            return true
        found = retrieve_truth(retriever, grid, retriever.options, unknown)
        if retriever.options.weight != "auto":
            return mixed(true, found, retriever.options.weight)
        calibration = retriever.source.calibration
        assert calibration is not None
        return mixed(true, found, calibration.of(found.evidence))


def _word(task: Task) -> str:
    """The thing that the pictures looked at must name."""
    return task.prompt.include[0].name


def use_of(kind: str) -> Use:
    return next(use for use in USES if kind in use.kinds)


def judged_scenes(
    scorer: Scorer, scenes: Sequence[BenchScene], pixels: np.ndarray
) -> dict[str, tuple[float, int]]:
    """The scorer's own share of right verdicts, and of how many, on pictures [B, H, W, 3] of
    scenes (as they are, or given back by a VQ): by split, kind of the seen ones, and size."""
    verdicts = [judge(s.truth, d) for s, d in zip(scenes, scorer.detect(pixels), strict=True)]
    groups: dict[str, list[bool]] = {}
    for scene, verdict in zip(scenes, verdicts, strict=True):
        left, top, right, bottom = scene.boxes[0]
        names = [scene.split, f"things of {max(right - left, bottom - top)} px"]
        if scene.split == "seen" and scene.truth.kind in KINDS:
            names.append(scene.truth.kind)
        for name in names:
            groups.setdefault(name, []).append(verdict.right)
    return {name: (float(np.mean(v)), len(v)) for name, v in sorted(groups.items())}
