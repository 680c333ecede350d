"""What steering shows on `pocket`, and what it costs.

    python scripts/pocket/steering.py [regions styles copies] \
        [--out docs/measured/steering.json] [--seeds 4] [--limit 8]

`regions`: two things that the model never saw, each recognised on its own side. `styles`: the
drawing style, or the scenery, of one part of the index with a subject of another. `copies`: the
over-copying score and recognition with a copy limit. Every row is written as it is measured; a
second run measures what is missing. The tables are printed at the end. `steering_speed.py` measures
the time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from backgrounds import NAMES as BACKGROUNDS
from backgrounds import SIZE, STEP, paint
from concepts import UNSEEN, article

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import arrag_engine as arrag
from arrag_engine.evaluate.benchmark import evenly
from arrag_engine.evaluate.measures import mean_and_spread
from arrag_engine.evaluate.pictures import decode_tokens
from arrag_engine.files import write_text
from arrag_engine.index import PatchIndex
from arrag_engine.layers import KeyChoice
from arrag_engine.retrieval import Steering, copied_regions, over_copying_score
from scripts.pocket.bench import DATA, SCORER
from scripts.pocket.bench.scenes import read_scenes
from scripts.pocket.bench.scorer import Detection, Scorer, load_scorer
from scripts.pocket.bench.tasks import encode_pixels
from scripts.pocket.halves import (
    SIDES,
    background_of,
    make_halves,
    on_sides,
    side_mask,
    true_halves,
)

PROMPTS = ("{} and {}", "{} left of {}")
PLACED = 8.0
"""Position weight of keys where regions meet: tokens of the other region disturb a query, so the
place must say more. The recommended 2 is measured too."""
SHARED = 0.5
"""Weight of each of two layers that work everywhere."""
LIMITS = (8, 16, 32)
REPEATED = 6
"""A code at so many positions of a picture counts as background."""
SCENERY = {"grass": "on-the-grass", "beach": "on-the-beach", "snow": "in-the-snow",
           "night": "at-night"}  # fmt: skip
"""Background -> what the names of its pictures say."""
SUBJECT_SHARES = (0.9, 0.8, 0.7)


@dataclass(frozen=True)
class Bench:
    """What draws and judges."""

    checkpoint: arrag.Checkpoint
    index: PatchIndex
    scorer: Scorer
    seeds: range
    limit: int | None
    """Pairs, or subjects, of each table."""
    work: Path
    """Folder for the index that is made."""

    @property
    def unseen(self) -> np.ndarray:
        """Numbers of the pictures of things that the model never saw."""
        return self.index.sources.any_of(["unseen/*"])

    @cached_property
    def halves(self) -> PatchIndex:
        path = self.work / "halves.safetensors"
        return make_halves(self.checkpoint, self.index, self.unseen.tolist(), path)

    def subjects(self, index: PatchIndex) -> list[str]:
        """The unseen things that an index has pictures of, by the words of their captions."""
        captions = [source.caption.split() for source in index.sources]
        there = {word for words in captions for word in words}
        return [name for name in UNSEEN if name in there]

    def draw(self, prompt: str, layers: Sequence[arrag.Layer]) -> tuple[np.ndarray, np.ndarray]:
        """Pixels [seeds, H, W, 3] and tokens [seeds, N], in the sampling recommended."""
        drawing = arrag.draw(self.checkpoint, prompt, self.seeds, layers)
        pixels = np.stack([np.asarray(image) for image in drawing.images])
        return pixels, drawing.tokens.flatten(1).numpy()


@dataclass
class Record:
    """Rows by their key, written to a file as each is measured."""

    path: Path
    rows: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.exists():
            self.rows = json.loads(self.path.read_text(encoding="utf-8"))

    def once(self, key: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a row, unless the file has it."""
        if key in self.rows:
            return
        self.rows[key] = measure()
        text = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in self.rows.items())
        write_text(self.path, f"{{\n{text}\n}}\n")
        print(key, self.rows[key], flush=True)

    def under(self, prefix: str) -> dict[str, list[dict[str, Any]]]:
        """Rows by what their key says between a prefix and its last part, in order."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for key, row in self.rows.items():
            if key.startswith(prefix):
                groups.setdefault(key.removeprefix(prefix).rpartition("/")[0], []).append(row)
        return groups


def measure_regions(bench: Bench, record: Record) -> None:
    """Two unseen things, one on each side."""
    record.once("judge/true halves", lambda: judge_error(bench))
    names = bench.subjects(bench.halves)
    pairs = evenly(list(zip(names, [*names[1:], *names[:1]], strict=True)), bench.limit)
    for left, right in pairs:
        for label, (prompts, layers) in region_recipes(bench, left, right).items():
            for prompt in prompts:
                key = f"regions/{label}/{prompt}: {left}, {right}"
                record.once(key, lambda a=(prompt, left, right, layers): sides_row(bench, *a))


def region_recipes(
    bench: Bench, left: str, right: str
) -> dict[str, tuple[Sequence[str], list[arrag.Layer]]]:
    """(prompts, layers) by what is said of them. A weight of 1 draws every token from the index,
    whatever the prompt."""
    one, small, shipped = PROMPTS[:1], (bench.halves, on_halves), (bench.index, of_shipped)

    def layers(of: tuple, weight: float, place: float, masks: bool) -> list[arrag.Layer]:
        index, make = of
        keys = KeyChoice(position_weight=place)
        return [replace(one, keys=keys) for one in make(index, left, right, weight, masks)]

    return {
        "small things, masks": (one, layers(small, 1.0, PLACED, True)),
        "small things, masks, weight 0.9": (PROMPTS, layers(small, 0.9, PLACED, True)),
        "small things, masks, position weight 2": (one, layers(small, 1.0, 2.0, True)),
        "small things, no masks": (one, layers(small, SHARED, PLACED, False)),
        "shipped index, masks": (one, layers(shipped, 1.0, PLACED, True)),
        "shipped index, no masks": (one, layers(shipped, SHARED, PLACED, False)),
    }


def on_halves(
    index: PatchIndex, left: str, right: str, weight: float, masks: bool
) -> list[arrag.Layer]:
    """A layer for each side, of pictures that have the thing there."""
    return [
        replace(part_layer(index, f"{side}/*", weight, steered(side, masks)), only=name)
        for side, name in zip(SIDES, (left, right), strict=True)
    ]


def of_shipped(
    index: PatchIndex, left: str, right: str, weight: float, masks: bool
) -> list[arrag.Layer]:
    """A layer for each side, of pictures that have the thing in the middle."""
    return [
        subject_layer(index, name, weight, steered(side, masks))
        for side, name in zip(SIDES, (left, right), strict=True)
    ]


def steered(side: str, masks: bool) -> Steering:
    return Steering(region=side_mask(side, SIZE) if masks else None)


def subject_layer(
    index: PatchIndex, name: str, weight: float, steering: Steering | None = None
) -> arrag.Layer:
    """All pictures of an unseen thing."""
    return replace(part_layer(index, "unseen/*", weight, steering), only=name)


def sides_row(
    bench: Bench, prompt: str, left: str, right: str, layers: Sequence[arrag.Layer]
) -> dict[str, Any]:
    """By seed: each thing on its own side, both, and each anywhere."""
    pixels, _ = bench.draw(prompt.format(article(left), article(right)), layers)
    found = bench.scorer.detect(pixels)
    sides = np.array([on_sides(one, left, right) for one in found])
    anywhere = [[named(one, name) is not None for name in (left, right)] for one in found]
    return {
        "left": sides[:, 0].tolist(),
        "right": sides[:, 1].tolist(),
        "both": sides.all(axis=1).tolist(),
        "anywhere": np.mean(anywhere, axis=1).tolist(),
    }


def judge_error(bench: Bench) -> dict[str, Any]:
    """How often the detector is right on true scenes of two small things, and on what the
    tokenizer makes of them; and how often it finds a thing on the side where the other is."""
    scenes = [
        s for s in read_scenes(DATA) if s.split == "unseen" and background_of(s.pixels) is not None
    ]
    made = true_halves(scenes)
    pixels = np.stack([picture for picture, _, _ in made])
    tokens = encode_pixels(bench.checkpoint, pixels)
    row: dict[str, Any] = {"pictures": len(made)}
    for label, shown in (("true", pixels), ("encoded", decode_tokens(bench.checkpoint, tokens))):
        found = bench.scorer.detect(shown)
        right = [on_sides(one, a, b) for one, (_, a, b) in zip(found, made, strict=True)]
        wrong = [on_sides(one, b, a) for one, (_, a, b) in zip(found, made, strict=True)]
        row[label] = {"own side": float(np.mean(right)), "other side": float(np.mean(wrong))}
    return row


def named(found: Sequence[Detection], name: str) -> Detection | None:
    """The surest detection of a thing."""
    return next((one for one in found if one.name == name), None)


def measure_styles(bench: Bench, record: Record) -> None:
    """The drawing style, or the scenery, of one part of the index with an unseen subject."""
    for number, name in enumerate(evenly(bench.subjects(bench.index), bench.limit)):
        for label, layers in flat_recipes(bench.index, name).items():
            prompt = f"{article(name)} in flat style"
            key = f"flat style/{label}/{name}"
            record.once(key, lambda a=(prompt, name, layers, None): style_row(bench, *a))
        scenery = list(SCENERY)[number % len(SCENERY)]
        for label, layers in scenery_recipes(bench.index, name, scenery).items():
            prompt = f"{article(name)} {SCENERY[scenery].replace('-', ' ')}"
            key = f"scenery/{label}/{name}, {scenery}"
            record.once(key, lambda a=(prompt, name, layers, scenery): style_row(bench, *a))


def flat_recipes(index: PatchIndex, name: str) -> dict[str, list[arrag.Layer]]:
    """Layers by what is said of them."""
    recipes = {
        "subject alone": [subject_layer(index, name, 1.0)],
        "style alone": [part_layer(index, "style/*", 1.0)],
    }
    for share in SUBJECT_SHARES:
        rest = round(1 - share, 2)
        layers = [subject_layer(index, name, share), part_layer(index, "style/*", rest)]
        recipes[f"subject {share:g}, style {rest:g}"] = layers
    return recipes


def scenery_recipes(index: PatchIndex, name: str, scenery: str) -> dict[str, list[arrag.Layer]]:
    """Layers by what is said of them; the subject in the middle, the scenery around it."""
    part, middle = f"known/*-{SCENERY[scenery]}*", middle_mask()
    recipes = {
        "subject alone": [subject_layer(index, name, 1.0)],
        "scenery alone": [part_layer(index, part, 1.0)],
    }
    for share in (1.0, *SUBJECT_SHARES[:2]):
        around = Steering(region=1 - share * middle)
        layers = [
            subject_layer(index, name, share, Steering(region=middle)),
            part_layer(index, part, 1.0, around),
        ]
        recipes[f"subject {share:g} in the middle"] = layers
    return recipes


def part_layer(
    index: PatchIndex, pattern: str, weight: float, steering: Steering | None = None
) -> arrag.Layer:
    """All pictures whose names match."""
    steering = steering or Steering()
    return arrag.Layer(index, only="", include=pattern, weight=weight, steering=steering)


def middle_mask() -> np.ndarray:
    """A region [SIZE, SIZE] of everything but the outermost tokens."""
    mask = np.zeros((SIZE, SIZE))
    mask[STEP:-STEP, STEP:-STEP] = 1
    return mask


def style_row(
    bench: Bench, prompt: str, name: str, layers: Sequence[arrag.Layer], scenery: str | None
) -> dict[str, Any]:
    """By seed: the subject found; the style of what is surest, or the scenery at the border; and
    both, the style that of the subject itself."""
    pixels, _ = bench.draw(prompt, layers)
    found = bench.scorer.detect(pixels)
    subject = [named(one, name) for one in found]
    seen = np.array([one is not None for one in subject])
    if scenery is None:
        shown = np.array([bool(one) and one[0].style == "google" for one in found])
        both = np.array([one is not None and one.style == "google" for one in subject])
    else:
        shown = np.array([background_shown(picture) == scenery for picture in pixels])
        both = seen & shown
    return {"subject": seen.tolist(), "style": shown.tolist(), "both": both.tolist()}


def background_shown(pixels: np.ndarray) -> str:
    """The background whose outermost tokens are nearest to those of a picture [H, W, 3]."""
    border = middle_mask() == 0
    errors = {
        name: float(np.abs(pixels[border] - 255 * paint(name)[border]).mean())
        for name in BACKGROUNDS
    }
    return min(errors, key=errors.__getitem__)


def measure_copies(bench: Bench, record: Record) -> None:
    """One unseen thing, without and with a copy limit."""
    for name in evenly(bench.subjects(bench.index), bench.limit):
        for limit in (0, *LIMITS):
            key = f"copies/{limit}/{name}"
            record.once(key, lambda a=(name, limit): copies_row(bench, *a))


def copies_row(bench: Bench, name: str, limit: int) -> dict[str, Any]:
    """By seed: the thing found; by size, the over-copying score, the share of it that is
    background, and the score of the other tokens alone."""
    layer = subject_layer(bench.index, name, 1.0, Steering(copy_limit=limit))
    pixels, tokens = bench.draw(article(name), [layer])
    seen = [named(one, name) is not None for one in bench.scorer.detect(pixels)]
    matching = bench.index.sources.matching(name, ("caption",))
    sources = np.intersect1d(bench.unseen, matching)
    row: dict[str, Any] = {"subject": seen}
    for size in LIMITS:
        scores = [copying(bench.index, picture, sources, size) for picture in tokens]
        row[f"larger than {size}"] = np.transpose(scores).tolist()
    return row


def copying(
    index: PatchIndex, tokens: np.ndarray, sources: np.ndarray, size: int
) -> tuple[float, float, float]:
    """Of a picture [N]: (over-copying score, the part of it that is background, the score of the
    picture without its background)."""
    thing = np.bincount(tokens)[tokens] < REPEATED
    regions = copied_regions(index.grid, index.tokens, tokens, sources, size)
    copied = np.zeros(len(tokens), bool)
    for region in regions:
        copied[region.positions] = True
    alone = np.where(thing, tokens, -1)
    without = copied_regions(index.grid, index.tokens, alone, sources, size)
    score = over_copying_score(index.grid, regions)
    return score, float((copied & ~thing).mean()), over_copying_score(index.grid, without)


def shares(rows: Sequence[dict[str, Any]], name: str) -> str:
    """Mean over rows and its spread over seeds."""
    mean, spread = mean_and_spread(np.mean([row[name] for row in rows], axis=0).tolist())
    return f"{mean:.3f} ±{spread:.3f}"


def share_table(record: Record, prefix: str, columns: Sequence[str]) -> str:
    """Rows of yes and no by seed."""
    lines = [f"| {prefix.rstrip('/')} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for label, rows in record.under(prefix).items():
        lines.append(f"| {label} | {' | '.join(shares(rows, name) for name in columns)} |")
    return "\n".join(lines)


def copies_table(record: Record) -> str:
    groups = record.under("copies/")
    lines = ["| copy limit | recognised | larger than | score before | score | of it background | "
             "without background before | without background |", "|---" * 8 + "|"]  # fmt: skip
    for limit in LIMITS:
        before, after = groups["0"], groups[str(limit)]
        name = f"larger than {limit}"
        cells = [shares(after, "subject"), str(limit)]
        for part, rows in ((0, before), (0, after), (1, after), (2, before), (2, after)):
            cells.append(shares([{"value": row[name][part]} for row in rows], "value"))
        lines.append(f"| {limit} | {' | '.join(cells)} |")
    lines.append(f"| none | {shares(groups['0'], 'subject')} |" + " |" * 6)
    return "\n".join(lines)


def tables(record: Record) -> str:
    """The tables of what has been measured."""
    parts = []
    if record.under("regions/"):
        parts.append(share_table(record, "regions/", ("left", "right", "both", "anywhere")))
    for prefix in ("flat style/", "scenery/"):
        if record.under(prefix):
            parts.append(share_table(record, prefix, ("subject", "style", "both")))
    if record.under("copies/"):
        parts.append(copies_table(record))
    return "\n\n".join(parts)


MEASURES: dict[str, Callable[[Bench, Record], None]] = {
    "regions": measure_regions,
    "styles": measure_styles,
    "copies": measure_copies,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("measures", nargs="*", default=list(MEASURES), metavar="MEASURE")
    parser.add_argument("--out", type=Path, default=Path("docs/measured/steering.json"))
    parser.add_argument("--work", type=Path, default=Path("build/steering"))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--limit", type=int, default=8, help="pairs or subjects; 0 = all")
    a = parser.parse_args()
    torch.set_num_threads(1)
    a.work.mkdir(parents=True, exist_ok=True)
    model, index = arrag.load_model("pocket"), arrag.load_index("pocket")
    scorer = load_scorer(SCORER)
    bench = Bench(model, index, scorer, range(a.seeds), a.limit or None, a.work)
    record = Record(a.out)
    for name in a.measures:
        MEASURES[name](bench, record)
    print(tables(record))


if __name__ == "__main__":
    main()
