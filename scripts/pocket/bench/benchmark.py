"""pocket-bench as the driver sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from arrag_engine.checkpoints import Checkpoint
from arrag_engine.decode import Kept, Recipe
from arrag_engine.evaluate.benchmark import ADAPTED, Part, Progress, no_progress
from arrag_engine.evaluate.journal import Journal
from arrag_engine.evaluate.measures import (
    bootstrap_interval,
    copied_share,
    frechet_distance,
    moments,
)
from arrag_engine.evaluate.pictures import Pictures, decode_tokens, write_sheet
from arrag_engine.faid import Faid
from arrag_engine.grid import RASTER, DrawingOrder
from arrag_engine.retrieval import layers_of
from arrag_engine.session import Plan

from . import DATA
from .bits import likelihoods
from .library import Library
from .prompts import KINDS, judge
from .report import bits_table, caption_note, score_table, share_table
from .scenes import BenchScene
from .scorer import Scorer
from .settings import EVERY_KIND, Use, family_of
from .tasks import Material, PocketTask, make_tasks


def use_of(kind: str, order: DrawingOrder = RASTER) -> Use:
    """How a model of a drawing order draws a kind."""
    return next(use for use in family_of(order).uses if kind in use.kinds)


@dataclass(frozen=True)
class Bench:
    """The benchmark for one model; implements `arrag_engine.evaluate.benchmark.Benchmark`."""

    checkpoint: Checkpoint
    library: Library
    scorer: Scorer
    faid: Faid | None = None
    material: Material = field(default_factory=Material)
    uses: Mapping[str, Use] = field(
        default_factory=lambda: {kind: use_of(kind) for kind in EVERY_KIND}
    )
    """How each kind is drawn."""

    @property
    def kinds(self) -> Sequence[str]:
        return tuple(self.uses)

    @property
    def grid(self) -> tuple[int, int]:
        grid = self.checkpoint.model.grid
        return grid.height, grid.width

    def tasks(self, kind: str) -> list[PocketTask]:
        return make_tasks(kind, self.material, self.grid[1])

    def plan(self, task: PocketTask, method: str) -> Plan:
        use, encoder = self.uses[task.wanted.kind], self.checkpoint.prompt_encoder
        prompt = encoder.encode(task.text) if captioned(use, method) else encoder.blank()
        retriever = self.library.retriever(use, method, word_of(task), bool(prompt.unknown))
        faid = self.faid if method in ADAPTED else None
        size, given = self.checkpoint.model.grid.size, task.given
        kept = None if given is None else Kept.first(given, size)
        layers = layers_of(retriever)
        streams = (prompt.ids, prompt.unconditional)
        schedule = replace(use.schedule, grow=use.schedule.grow and retriever is not None)
        recipe = Recipe(*streams, use.sampling, layers, faid, kept, schedule)
        return Plan(prompt, recipe, ())

    def score(
        self, task: PocketTask, method: str, tokens: np.ndarray, pixels: np.ndarray
    ) -> list[dict[str, float]]:
        """`right`: 1 if all that is asked for is there; `objects`: share of the things asked for
        that are there, whatever their colour, place and style; with an index also `copied`: share
        of tokens equal to those of the nearest picture of the index."""
        verdicts = [judge(task.wanted, found) for found in self.scorer.detect(pixels)]
        scores = [{"right": float(v.right), "objects": v.objects} for v in verdicts]
        if method == "plain":
            return scores
        index = self.library.view_of(self.uses[task.wanted.kind], method, word_of(task))
        copied = [copied_share(picture, index) for picture in tokens]
        return [s | {"copied": share} for s, share in zip(scores, copied, strict=True)]

    def measure(self, methods: Sequence[str], progress: Progress, journal: Journal) -> list[str]:
        """How far the detector can be trusted, and bits per token."""
        alone = [method for method in methods if method not in (*ADAPTED, "plain")]
        ceiling = self._ceiling(progress)
        bits = likelihoods(
            self.checkpoint, self.library, self.material, ["plain", *alone], progress, journal
        )
        return [ceiling, bits_table(bits)]

    def _ceiling(self, progress: Progress) -> str:
        """How often the detector is right on real scenes, and on what the VQ makes of them."""
        scenes, tokens, returned = self.material.scenes, self.material.tokens, []
        for number in range(len(scenes)):
            returned.append(decode_tokens(self.checkpoint, tokens[number : number + 1]))
            progress("scene decoded", number + 1, len(scenes), "")
        real = np.stack([scene.pixels for scene in scenes])
        kinds = {"real": real, "reconstructed": np.concatenate(returned)}
        columns = {
            name: judged_scenes(self.scorer, scenes, pixels, progress, f"{name} scene judged")
            for name, pixels in kinds.items()
        }
        return share_table("scorer right on", columns)

    def summary(self, part: Part, pictures: Pictures) -> dict[str, Any]:
        scores: dict[str, Any] = {name: pictures.by_seed(name) for name in ("right", "objects")}
        for name in ("right", "objects"):
            scores[f"{name}_interval"] = bootstrap_interval(pictures.by_task(name))
        kind, method = part
        given = captioned(self.uses[kind], method)
        return scores | {"copied": pictures.mean("copied"), "caption_given": given}

    def tables(self, parts: Mapping[Part, Pictures], progress: Progress) -> list[str]:
        blank = [part for part in parts if not captioned(self.uses[part[0]], part[1])]
        return [score_table(parts), caption_note(blank), self._distances(parts, progress)]

    def _distances(self, parts: Mapping[Part, Pictures], progress: Progress) -> str:
        """Fréchet distance of GenEval's six kinds to real scenes of these kinds."""
        reference, lines = load_file(DATA / "features.safetensors"), []
        methods = list(dict.fromkeys(method for _, method in parts))
        for number, method in enumerate(methods, 1):
            drawn = [parts[kind, method].pixels for kind in KINDS if (kind, method) in parts]
            pixels = [picture for part in drawn for picture in part]
            if len(drawn) == len(KINDS) and len(pixels) > 1:
                found = moments(self.scorer.features(np.stack(pixels)))
                distance = frechet_distance(found, (reference["mean"], reference["covariance"]))
                lines.append(f"{method:<8} {distance:.3f} ({len(pixels)} pictures)")
            progress("Fréchet distance", number, len(methods), method)
        return "Fréchet distance to real scenes\n" + "\n".join(lines) if lines else ""

    def write(self, folder: Path, part: Part, pictures: Pictures) -> None:
        write_sheet(pictures, folder / f"{'-'.join(part)}.png", "right")


def captioned(use: Use, method: str) -> bool:
    """Whether the model is given the caption. The calibrated weight asks whether the model knows
    the words, so they are not left out with it."""
    return method == "auto" or not use.blank


def word_of(task: PocketTask) -> str:
    """The thing that the pictures looked at must name."""
    return task.wanted.include[0].name


def judged_scenes(
    scorer: Scorer,
    scenes: Sequence[BenchScene],
    pixels: np.ndarray,
    progress: Progress = no_progress,
    counted: str = "",
) -> dict[str, tuple[float, int]]:
    """The scorer's own share of right verdicts, and of how many, on pictures [B, H, W, 3] of
    scenes (as they are, or given back by a VQ): by split, kind of the seen ones, and size."""
    verdicts = []
    for number, scene in enumerate(scenes):
        verdicts.append(judge(scene.truth, scorer.detect(pixels[number : number + 1])[0]))
        progress(counted, number + 1, len(scenes), "")
    groups: dict[str, list[bool]] = {}
    for scene, verdict in zip(scenes, verdicts, strict=True):
        left, top, right, bottom = scene.boxes[0]
        names = [scene.split, f"things of {max(right - left, bottom - top)} px"]
        if scene.split == "seen" and scene.truth.kind in KINDS:
            names.append(scene.truth.kind)
        for name in names:
            groups.setdefault(name, []).append(verdict.right)
    return {name: (float(np.mean(v)), len(v)) for name, v in sorted(groups.items())}
