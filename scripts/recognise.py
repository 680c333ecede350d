"""Print the shipped detector's result for a picture: `python -m scripts.recognise PNG [WANTED]`.

Exits with 1 when it does not find the thing that is WANTED.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.pocket.bench import SCORER
from scripts.pocket.bench.scorer import Detection, load_scorer

SIDE = 96
"""Pixels: the size of the pictures that the detector was trained on."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("wanted", nargs="?")
    options = parser.parse_args()
    found = things_on(options.picture)
    seen = ", ".join(f"{thing.name} ({thing.score:.2f})" for thing in found) or "nothing"
    print(f"{options.picture}: {seen}")
    if options.wanted is None or options.wanted in {thing.name for thing in found}:
        return 0
    print(f"{options.picture} should show: {options.wanted}")
    return 1


def things_on(path: Path) -> list[Detection]:
    """The things on a picture, the surest first."""
    picture = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    [found] = load_scorer(SCORER).detect(np.array(picture)[None])
    return found


if __name__ == "__main__":
    raise SystemExit(main())
