"""`build`: make patch indexes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..build import build_index
from ..grid import BORDERS, NEIGHBORHOODS
from ..index import KEY_SPACES, KeySpec, save_index
from .shared import Command, add_model_flags, check_writable, follow, load_model, progress_bar


def add_commands(command: Command) -> None:
    sub = command(build)
    add_model_flags(sub)
    sub.add_argument("--images", required=True, type=Path, help="folder of PNG, JPEG, WebP")
    sub.add_argument("--out", required=True, type=Path, help="index file to write (.safetensors)")
    sub.add_argument("--licence", default="", help="noted for every picture")
    sub.add_argument("--neighborhood", choices=NEIGHBORHOODS, default="causal-4")
    sub.add_argument("--borders", choices=BORDERS, default="skip")
    sub.add_argument("--key-space", choices=KEY_SPACES, default="encoder")


def build(a: argparse.Namespace) -> int:
    """Build an index from a folder of pictures."""
    out = check_writable(a.out, ".safetensors")
    spec = KeySpec(a.neighborhood, a.borders, a.key_space)
    checkpoint = load_model(a)
    with progress_bar("picture") as bar:
        built = build_index(checkpoint.model, a.images, spec, a.licence, follow(bar))
    save_index(built.index, out)
    for path, why in built.skipped:
        print(f"skipped {path}: {why}", file=sys.stderr)
    print(f"{out}: {len(built.index.tokens)} pictures, {built.index.size} patches")
    return 0
