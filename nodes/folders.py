"""Where models, indexes and adapters lie, and the names that the loaders offer.

A widget's string can come from an untrusted workflow. So a name is never joined to a path: it is
looked up among the names found by walking the registered folders.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import folder_paths
import yaml
from comfy.cli_args import args

from ..arrag_engine import shipped
from ..arrag_engine.checkpoints.opening import PICTURE_TOKENIZER
from ..arrag_engine.errors import InputError
from ..arrag_engine.index.file import MANIFEST

MODELS = "arrag_models"
INDEXES = "arrag_indexes"
ADAPTERS = "arrag_adapters"
SUBFOLDERS = {MODELS: "models", INDEXES: "indexes", ADAPTERS: "adapters"}
SHIPPED = {
    MODELS: shipped.MODELS,
    INDEXES: shipped.INDEXES,
    ADAPTERS: shipped.ADAPTERS,
}
MAX_DEPTH = 4
OFFERED = (".safetensors", ".gguf")
"""Files on offer. Those of the second kind do not load: the error says so, which a name that is
missing from the list does not."""


def register() -> None:
    """Add our folders to what `extra_model_paths.yaml` may already have registered."""
    for key in SUBFOLDERS:
        path = own_folder(key)
        with contextlib.suppress(OSError):  # a read-only folder must not take the nodes away
            os.makedirs(path, exist_ok=True)
        folder_paths.add_model_folder_path(key, path)


def own_folder(key: str) -> str:
    """Where what is made here is saved."""
    return os.path.join(folder_paths.models_dir, "arrag", SUBFOLDERS[key])


@cache
def save_folder(key: str) -> str:
    """The folder to save to: the default of extra_model_paths.yaml, if there is one.

    ComfyUI has no such query: it keeps only an order of folders, and reads the file before
    this package adds its own folder.
    """
    root = os.path.dirname(os.path.realpath(inspect.getfile(folder_paths)))
    more = itertools.chain(*(args.extra_model_paths_config or ()))
    defaults = [own_folder(key)]
    for file in (os.path.join(root, "extra_model_paths.yaml"), *more):
        if os.path.isfile(file):
            defaults += _defaults(file, key)
    return defaults[-1]


def _defaults(file: str, key: str) -> list[str]:
    """Folders that a file of `extra_model_paths` makes the default of a key."""
    with open(file, encoding="utf-8") as stream:
        sections = yaml.safe_load(stream) or {}
    here, found = os.path.dirname(os.path.abspath(file)), []
    for section in filter(None, sections.values()):
        if section.get("is_default") and key in section:
            base = os.path.expandvars(os.path.expanduser(section.get("base_path", "")))
            found += [
                os.path.normpath(os.path.join(here, base, y)) for y in section[key].split("\n") if y
            ]
    return found


def choices(key: str) -> dict[str, Path]:
    """Names on offer and what they stand for: shipped ones first, then the user's own.

    A model folder is named by its path below the root, with forward slashes.
    """
    found = {
        name: SHIPPED[key] / f"{name}.safetensors" for name in shipped.shipped_names(SHIPPED[key])
    }
    for root in map(Path, folder_paths.get_folder_paths(key)):
        for path in _walk(root, key):
            found.setdefault(path.relative_to(root).as_posix(), path)
    return found


def _walk(root: Path, key: str) -> list[Path]:
    found, folders_too = [], key == MODELS
    offered = (*OFFERED, MANIFEST) if key == INDEXES else OFFERED
    for folder, names, files in os.walk(root, followlinks=True):
        here = Path(folder)
        names[:] = [name for name in names if not name.startswith(".")]  # unfinished builds, .git
        if len(here.relative_to(root).parts) >= MAX_DEPTH:
            names.clear()
        if folders_too and here != root and _is_model_folder(files):
            names.clear()
            found.append(here)
            continue
        found += [here / file for file in files if file.endswith(offered)]
    return sorted(found)


def _is_model_folder(files: list[str]) -> bool:
    """Whether the files are those of a downloaded model, whole or not."""
    patterns = ("config.json", "model.safetensors", "model-*.safetensors", "pytorch_model*.bin")
    return any(fnmatch(file, pattern) for file in files for pattern in patterns)


def resolve(key: str, name: str) -> Path:
    """The file or folder behind a name on offer.

    Raises:
        InputError: The name is not on offer.
    """
    on_offer = choices(key)
    if not isinstance(name, str) or name not in on_offer:
        place = os.path.join("models", "arrag", SUBFOLDERS[key])
        raise InputError(
            f"{str(name)[:100]!r} is not among the files of {place}; choose one of the list"
        )
    return on_offer[name]


def fingerprint(path: Path) -> str:
    """Changes when the file, what a model reads beside it, or a file of the folder does."""
    if path.is_file():
        beside = (path.with_name(name) for name in ("config.json", "tokenizer.json"))
        files = [path, *(file for file in beside if file.is_file())]
    else:
        inner = path / PICTURE_TOKENIZER
        files = sorted(p for p in (*path.iterdir(), *inner.glob("*")) if p.is_file())
    stats = ((f.relative_to(path.parent), f.stat()) for f in files)
    return ";".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)


def state(key: str, name: str) -> str:
    """`fingerprint` of what is behind a name on offer; errors as of `resolve`."""
    return fingerprint(resolve(key, name))


def validate(key: str, name: str | None) -> bool | str:
    """True, or why a workflow with this name is not even queued: the browser marks the node.

    ComfyUI itself does not compare the value of a V3 combo with its options.
    """
    if name is None:  # linked: not known yet
        return True
    try:
        resolve(key, name)
    except InputError as error:
        return str(error)
    return True
