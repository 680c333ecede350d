"""Models, indexes and adapters that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

from .errors import InputError
from .paths import check_file, check_readable, given_name, look_at

ROOT = Path(__file__).parent / "shipped"
MODELS = ROOT / "models"
INDEXES = ROOT / "indexes"
ADAPTERS = ROOT / "adapters"


def shipped_names(folder: Path) -> list[str]:
    """Names of what `folder` (`MODELS`, `INDEXES`, `ADAPTERS`) ships."""
    return sorted(path.stem for path in folder.glob("*.safetensors"))


def named(name: str) -> dict[str, Path]:
    """Everything shipped under a name, by its full name: `pocket` may be a model, an index and an
    adapter, `indexes/pocket` is one of them."""
    found = {}
    for folder in (MODELS, INDEXES, ADAPTERS):
        for stem in shipped_names(folder):
            full = f"{folder.name}/{stem}"
            if name in (stem, full):
                found[full] = folder / f"{stem}.safetensors"
    return found


def resolve(name_or_path: str, folder: Path) -> Path:
    """The file of a shipped name, `pocket` or `indexes/pocket`, or the path itself.

    Raises:
        InputError: Neither a shipped name nor a path that can be read; a folder that is no model.
    """
    given_name(name_or_path, "the name of a file")
    stem = name_or_path.removeprefix(f"{folder.name}/")
    if stem in shipped_names(folder):
        return folder / f"{stem}.safetensors"
    path = Path(name_or_path)
    if look_at(path) is None:
        names = ", ".join(shipped_names(folder)) or "none"
        raise InputError(f"{name_or_path} is neither a file or folder nor a shipped name ({names})")
    return check_readable(path) if folder == MODELS else check_file(path)
