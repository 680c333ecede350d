"""What the official scorers wrote: GenEval's results and DPG-Bench's text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import read_text
from ..paths import check_file, shown_path
from .measures import mean_and_spread
from .quoted import DPG, GENEVAL

GENEVAL_PROMPTS = {
    **{"single_object": 80, "two_object": 99, "counting": 80},
    **{"colors": 94, "position": 100, "color_attr": 100},
}
"""How many GenEval has of each category."""
DPG_PROMPTS = 1065
SAMPLE = re.compile(r"([0-9]+)\.png$")
Verdict = tuple[str, int, bool]
"""A prompt, the number of its picture, whether that is correct."""
NUMBER = r"(-?[0-9.]+(?:e-?[0-9]+)?)"


@dataclass(frozen=True)
class Score:
    """A mean, and its spread over seeds; None where there is no more than one seed."""

    mean: float
    spread: float | None = None


@dataclass(frozen=True)
class Results:
    """The scores of a method."""

    categories: Mapping[str, Score]
    overall: Score | None
    missing: tuple[str, ...] = ()
    """Sentences on what the scorer's output lacks."""
    also: Mapping[str, float] = field(default_factory=dict)
    """Finer categories."""


def read_geneval_results(path: Path) -> Results:
    """The scores in GenEval's `results.jsonl`: share of correct pictures by category, and the mean
    over the categories, as its `summary_scores.py` counts.

    Raises:
        InputError: The file cannot be read, or a line is no result.
    """
    tags: dict[str, list[Verdict]] = {}
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            tag, verdict = _verdict(line, f"line {number} of {shown_path(path)}")
            tags.setdefault(tag, []).append(verdict)
    if not tags:
        raise InputError(
            f"{shown_path(path)} holds no results; give the --outfile of GenEval's "
            "evaluate_images.py"
        )
    categories = {tag: _score(_by_seed(verdicts), verdicts) for tag, verdicts in tags.items()}
    return Results(categories, _overall(tags), tuple(_missing_geneval(tags)))


def _verdict(line: str, where: str) -> tuple[str, Verdict]:
    """(category, verdict) of a line."""
    try:
        record = json.loads(line)
        tag, name, correct = record["tag"], record["filename"], record["correct"]
        prompt = str(record.get("metadata", record.get("prompt")))
        sample = SAMPLE.search(name)
        if not isinstance(tag, str) or not isinstance(correct, bool) or sample is None:
            raise ValueError("no tag, picture number or verdict")
        return tag, (prompt, int(sample[1]), correct)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{where} is no result of GenEval ({str(error)[:80]}); give the --outfile of its "
            "evaluate_images.py"
        ) from error


def _by_seed(verdicts: Sequence[Verdict]) -> list[float]:
    seeds: dict[int, list[bool]] = {}
    for _, seed, correct in verdicts:
        seeds.setdefault(seed, []).append(correct)
    return [float(np.mean(seeds[seed])) for seed in sorted(seeds)]


def _score(by_seed: Sequence[float], verdicts: Sequence[Verdict]) -> Score:
    spread = mean_and_spread(by_seed)[1] if len(by_seed) > 1 else None
    return Score(float(np.mean([correct for *_, correct in verdicts])), spread)


def _overall(tags: Mapping[str, Sequence[Verdict]]) -> Score:
    mean = float(np.mean([_score([], verdicts).mean for verdicts in tags.values()]))
    each = [_by_seed(verdicts) for verdicts in tags.values()]
    if len({len(one) for one in each}) > 1 or len(each[0]) < 2:
        return Score(mean)
    return Score(mean, mean_and_spread(np.mean(each, axis=0).tolist())[1])


def _missing_geneval(tags: Mapping[str, Sequence[Verdict]]) -> list[str]:
    told = []
    for tag in GENEVAL:
        prompts = {prompt for prompt, *_ in tags.get(tag, ())}
        wanted = GENEVAL_PROMPTS[tag]
        if tag not in tags:
            told.append(f"category {tag} is missing")
        elif len(prompts) < wanted:
            told.append(f"{tag} has {len(prompts)} of {wanted} prompts")
    counts: dict[str, int] = {}
    for verdicts in tags.values():
        for prompt, *_ in verdicts:
            counts[prompt] = counts.get(prompt, 0) + 1
    if len(set(counts.values())) > 1:
        low, high = min(counts.values()), max(counts.values())
        told.append(f"prompts have {low} to {high} pictures")
    told += [f"category {tag} is none of GenEval's" for tag in tags if tag not in GENEVAL]
    return told


def read_dpg_results(path: Path) -> Results:
    """The scores in the text of DPG-Bench's `compute_dpg_bench.py`: a line for each picture, then
    the means by category and the score, from 0 to 100.

    Raises:
        InputError: The file cannot be read, or holds neither.
    """
    text = _text(path)
    pictures = [_picture_scores(line) for line in text.split("\n")]
    each = [scores for scores in pictures if scores]
    first, second = _section(text, "L1"), _section(text, "L2")
    stated = re.search(rf"^DPG-Bench score: {NUMBER}", text, re.MULTILINE)
    if not each and stated is None:
        raise InputError(
            f"{shown_path(path)} holds no results; give the --res-path of DPG-Bench's "
            "compute_dpg_bench.py"
        )
    overall = None if stated is None else Score(float(stated[1]), _dpg_spread(each))
    if stated is None:
        overall = Score(
            100 * float(np.mean([np.mean(scores) for scores in each])), _dpg_spread(each)
        )
    missing = [f"category {name} is missing" for name in DPG if name not in first]
    if len(each) < DPG_PROMPTS:
        missing.append(f"{len(each)} of {DPG_PROMPTS} prompts are scored")
    if stated is None:
        missing.append("the summary is missing: the score is the mean of the pictures")
    return Results({n: Score(v) for n, v in first.items()}, overall, tuple(missing), second)


def _picture_scores(line: str) -> list[float]:
    """The scores of a prompt's pictures; the last number of the line is their mean."""
    match = re.fullmatch(rf".+\.png((?:, {NUMBER})+)\r?", line)
    if match is None:
        return []
    return [float(part) for part in match[1].split(",")[1:-1]]


def _section(text: str, level: str) -> dict[str, float]:
    """The means under `L1 category scores:` or `L2 category scores:`."""
    match = re.search(rf"^{level} category scores:\r?\n((?:\t.*\n?)*)", text, re.MULTILINE)
    lines = match[1].splitlines() if match else []
    found = (re.fullmatch(rf"\t(.+): {NUMBER}", line) for line in lines)
    return {one[1].strip().lower(): float(one[2]) for one in found if one}


def _dpg_spread(each: Sequence[Sequence[float]]) -> float | None:
    """Of the means of the first, second, … pictures."""
    if not each or len({len(scores) for scores in each}) > 1 or len(each[0]) < 2:
        return None
    return 100 * mean_and_spread(np.mean(each, axis=0).tolist())[1]


def _text(path: Path) -> str:
    try:
        return read_text(check_file(path))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{shown_path(path)} cannot be read as text ({str(error)[:80]})"
        ) from error
