"""Figures that others published, printed beside ours. None of them was measured here."""

from __future__ import annotations

from dataclasses import dataclass, field

GENEVAL = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's categories by its own tags, in the paper's order."""
DPG = ("global", "entity", "attribute", "relation", "other")
"""DPG-Bench's categories, in the paper's order."""
PAPER = "paper, arXiv 2506.06962v3"
README = "README of the reference repository PLUM-Lab/AR-RAG, June 2025"
FID_COCO, FID_MIDJOURNEY = "FID MSCOCO", "FID Midjourney-30K"
OVERHEAD = (
    "the paper measured on an L40: DAiD takes 0.22 % more time than the model alone, FAiD 36 % more"
)


@dataclass(frozen=True)
class Quoted:
    """What a source says of a method; shares and scores as it prints them."""

    method: str
    source: str
    geneval: tuple[float, ...] = ()
    """By category."""
    geneval_overall: float | None = None
    dpg: tuple[float, ...] = ()
    """By category."""
    dpg_overall: float | None = None
    fid: dict[str, float] = field(default_factory=dict)


QUOTED = (
    Quoted("Janus-Pro-1B", PAPER, (), 0.71, (), 77.26, {FID_MIDJOURNEY: 14.33}),
    Quoted("FAiD", PAPER, (), 0.78, (), 79.36, {FID_MIDJOURNEY: 6.67}),
    Quoted(
        *("Janus-Pro-1B", README, (0.98, 0.77, 0.52, 0.84, 0.61, 0.55), 0.71),
        *((81.76, 84.53, 84.34, 92.22, 75.20), 77.26),
        {FID_COCO: 19.59, FID_MIDJOURNEY: 12.81},
    ),
    Quoted(
        *("DAiD", README, (0.98, 0.82, 0.54, 0.87, 0.63, 0.49), 0.72),
        *((83.58, 84.46, 84.76, 91.49, 76.40), 77.88),
        {FID_COCO: 18.02, FID_MIDJOURNEY: 11.93},
    ),
    Quoted(
        *("FAiD", README, (1.00, 0.92, 0.41, 0.87, 0.71, 0.60), 0.75),
        *((82.67, 85.80, 85.38, 92.30, 76.80), 79.36),
        {FID_COCO: 17.60, FID_MIDJOURNEY: 9.31},
    ),
)
"""The two sources differ in places; both are printed."""
