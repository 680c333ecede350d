"""pocket-bench, the suite `pocket` of `arrag eval`: prompts in GenEval's format, scenes that no
model was trained on, and a detector that judges the pictures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrag_engine.bounds import LIMIT
from arrag_engine.cli.parser import number, some_of
from arrag_engine.paths import check_file, given_path

from .settings import EVERY_KIND

if TYPE_CHECKING:
    from arrag_engine.checkpoints import Checkpoint
    from arrag_engine.evaluate.benchmark import Progress
    from arrag_engine.faid import Faid
    from arrag_engine.index import PatchIndex

    from .benchmark import Bench

DATA = Path(__file__).parent / "data"
"""Prompts, scenes and weights."""
SCORER = DATA / "scorer.safetensors"
PROMPTS = DATA / "prompts.jsonl"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What this suite alone has. Loads no PyTorch."""
    add: Callable[..., Any] = parser.add_argument
    add(
        "--kinds",
        default=",".join(EVERY_KIND),
        check=some_of(EVERY_KIND),
        help="kinds of prompts to draw",
    )
    add("--limit", **number(LIMIT), help="prompts of a kind, and scenes of a split (default: all)")
    add(
        "--scorer",
        default=SCORER,
        check=_given_file,
        help="file of the detector that judges the pictures (default: the suite's own)",
    )


def _given_file(value: str, name: str) -> Path:
    return check_file(given_path(value, name))


def read(
    a: argparse.Namespace,
) -> Callable[[Checkpoint, PatchIndex, Faid | None, Progress], Bench]:
    """Read everything but the model; what is returned makes the benchmark for one.

    Raises:
        InputError: A file is missing or damaged.
    """
    from .benchmark import Bench, Material, use_of
    from .library import Library
    from .prompts import of_kind, read_prompts
    from .scenes import limited, read_scenes
    from .scorer import load_scorer
    from .tasks import scene_tokens

    scorer, kinds, every = load_scorer(a.scorer), a.kinds.split(","), read_prompts(PROMPTS)
    prompts = [prompt for kind in kinds for prompt in of_kind(every, kind, a.limit)]
    scenes = limited(read_scenes(DATA), a.limit)

    def begin(
        checkpoint: Checkpoint, index: PatchIndex, faid: Faid | None, progress: Progress
    ) -> Bench:
        library = Library(checkpoint, index)
        material = Material(prompts, scenes, scene_tokens(checkpoint, scenes, DATA, progress))
        uses = {kind: use_of(kind, checkpoint.model.order) for kind in kinds}
        return Bench(checkpoint, library, scorer, faid, material, uses)

    return begin


def varied(bench: Bench, values: Mapping[str, Any]) -> Bench:
    """The benchmark with options of every kind changed, by the names of `eval sweep`."""
    from .settings import vary

    spec = bench.library.index.spec
    return replace(bench, uses={kind: vary(use, values, spec) for kind, use in bench.uses.items()})
