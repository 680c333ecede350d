"""A folder of pictures that `pocket` has never seen, to try "draw from your own pictures" with:

    python scripts/pocket/own_pictures.py saxophone 🎷 --out saxophones

Each picture shows the emoji once, at several places and on several backgrounds, and has a caption
file beside it. The emoji come from the npm package that `pocket` was trained on other ones of.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from data import Composer
from PIL import Image
from sprites import STYLES, Sprites, fetch, read_archive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", help="what captions call it")
    parser.add_argument("emoji", help="the character to show")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--count", type=int, default=20, help="pictures to make (default: 20)")
    parser.add_argument("--archives", type=Path, default=Path("build/npm"), help="download folder")
    args = parser.parse_args()
    style = STYLES[0]
    archive = fetch(args.archives, style)
    sprites = Sprites(read_archive(archive, style, {args.name: args.emoji}), style)
    write_pictures(Composer(sprites, [args.name], "train"), args.count, args.out)


def write_pictures(composer: Composer, count: int, out: Path) -> None:
    """`count` different scenes of one thing, as 00.png with its caption in 00.txt, and so on."""
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    scenes: dict[bytes, tuple[np.ndarray, str]] = {}
    while len(scenes) < count:
        scene = composer.scene(rng, "single_object")
        scenes.setdefault(scene.pixels.tobytes(), (scene.pixels, scene.caption))
    for number, (pixels, caption) in enumerate(scenes.values()):
        Image.fromarray(pixels).save(out / f"{number:02}.png")
        (out / f"{number:02}.txt").write_text(caption + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
