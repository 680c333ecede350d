"""Models, indexes and adapters that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

from .errors import InputError

ROOT = Path(__file__).parent / "shipped"
MODELS = ROOT / "models"
INDEXES = ROOT / "indexes"
ADAPTERS = ROOT / "adapters"
BENCH = ROOT / "bench"
"""Prompts, scenes and weights of `eval pocket`."""


def shipped_names(folder: Path) -> list[str]:
    """Names of what `folder` (`MODELS`, `INDEXES`, `ADAPTERS`) ships."""
    return sorted(path.stem for path in folder.glob("*.safetensors"))


def resolve(name_or_path: str, folder: Path) -> Path:
    """A shipped name's file, or the path itself.

    Raises:
        InputError: Neither a shipped name nor an existing path.
    """
    if name_or_path in shipped_names(folder):
        return folder / f"{name_or_path}.safetensors"
    path = Path(name_or_path)
    if not path.exists():
        names = ", ".join(shipped_names(folder)) or "none"
        raise InputError(f"{name_or_path} is neither a file or folder nor a shipped name ({names})")
    return path
