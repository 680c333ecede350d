"""The flags of sampling, and of the schedule of models that draw in any order."""

from __future__ import annotations

import argparse

from ..bounds import CFG, POWER, STEPS, TEMPERATURE, TOP_K, TOP_P
from ..settings import CONFIDENCES, MASK_CURVES, SamplingChoice, ScheduleChoice
from .parser import number


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--cfg", **number(CFG), help="guidance (default: the model's own)")
    add(
        "--temperature",
        **number(TEMPERATURE),
        help="0 = most probable token (default: the model's own)",
    )
    add("--top-k", **number(TOP_K), default=0, help="most probable tokens to keep; 0 = all")
    add("--top-p", **number(TOP_P), help="1 = all tokens (default: the model's own)")


def chosen_sampling(a: argparse.Namespace) -> SamplingChoice:
    return SamplingChoice(a.cfg, a.temperature, a.top_k, a.top_p)


def add_schedule_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--steps",
        **number(STEPS),
        help="passes of a model that draws in any order (default: recommended for the model)",
    )
    add(
        "--schedule",
        choices=MASK_CURVES,
        help="how its unknown tokens become fewer (default: recommended for the model)",
    )
    add("--schedule-power", **number(POWER), help="K of the schedule pow: 1 - t^K (default: 2)")
    add(
        "--schedule-temperature",
        **number(TEMPERATURE),
        help="of its choice of positions; 0 = always those that it is surest of (default: "
        "recommended for the model)",
    )
    add(
        "--confidence",
        choices=CONFIDENCES,
        help="whose probability of a drawn token says how sure it is: the mixture's with what is "
        "retrieved, or the model's (default: recommended for the model)",
    )
    add(
        "--grow",
        action=argparse.BooleanOptionalAction,
        help="keep only tokens beside known ones in each step, so that the picture grows around "
        "what stands (default: recommended for the model)",
    )


def chosen_schedule(a: argparse.Namespace) -> ScheduleChoice:
    return ScheduleChoice(
        *(a.steps, a.schedule_temperature, a.schedule, a.schedule_power),
        confidence=a.confidence,
        grow=a.grow,
    )
