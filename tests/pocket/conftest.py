"""The pocket model's scripts, importable, with made sprites."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "pocket"))

from data import Composer
from sprites import Sprites

from tests.pocket.made import NAMES, made_sprites


@pytest.fixture(scope="session")
def sprites() -> dict[str, Sprites]:
    return {style: made_sprites(style) for style in ("fluent", "google")}


@pytest.fixture
def composer(sprites) -> Composer:
    return Composer(sprites["fluent"], NAMES, "train")
