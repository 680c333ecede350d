"""The manifest of an index in shards: a small JSON file beside them that says what they are.

A shard is an index file. Its pictures are numbered on from those of the shard before.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ..bounds import shown
from ..errors import InputError
from ..files import write_text
from ..grid import Grid
from .container import FINGERPRINT
from .file import MANIFEST, load_index, read_header, save_index
from .keys import KeySpec
from .patch_index import PatchIndex

FORMAT = "arrag-shards"
VERSION = 1
MOST_SHARDS = 4096
MOST_PICTURES = 2**31 - 1
"""A trace keeps the number of a picture in 32 bits."""
LARGEST = 4 * 2**20
"""Bytes of a manifest."""
FIELDS = {"format", "version", "grid", "vq", "keys", "structure", "shards"}
SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
NAME = re.compile(r"[^/\\:\0-\x1f]{1,200}\.safetensors")


@dataclass(frozen=True)
class Shard:
    """An index file that is a part of an index."""

    file: str
    """Its name in the folder of the manifest."""
    first: int
    """Number of its first picture in the whole index."""
    pictures: int
    sha256: str
    """The fingerprint in its header: a hash of the header fields and of every tensor's hash."""


@dataclass(frozen=True)
class Manifest:
    """An index in shards."""

    path: Path
    grid: Grid
    vq: str
    """SHA-256 of the codebook's bytes."""
    keys: KeySpec
    structure: str
    shards: tuple[Shard, ...]

    @property
    def pictures(self) -> int:
        return sum(shard.pictures for shard in self.shards)

    @property
    def firsts(self) -> np.ndarray:
        """Number [shards] of the first picture of each shard."""
        return np.array([shard.first for shard in self.shards])

    @property
    def identity(self) -> str:
        """One SHA-256 of all shards."""
        text = " ".join([str(self.grid), *(shard.sha256 for shard in self.shards)])
        return hashlib.sha256(text.encode()).hexdigest()

    def place(self, shard: Shard) -> Path:
        """Where a shard's file is."""
        return self.path.parent / shard.file


def is_manifest(path: Path) -> bool:
    """Whether a file is meant as a manifest, by its name."""
    return Path(path).suffix.lower() == MANIFEST


def codebook_hash(codebook: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(codebook).tobytes()).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """A manifest, checked; its shards are not opened.

    Raises:
        InputError: It cannot be read, or is none.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST >> 20} MB")
        return manifest_of(path, json.loads(data.decode(), parse_constant=_no_number))
    except RecursionError:
        problem = "it is nested too deep"
    except (OSError, ValueError, InputError) as error:
        problem = str(error)[:200]
    raise InputError(f"{path} is not a manifest of an index in shards: {problem}; build it again")


def _no_number(name: str) -> float:
    raise ValueError(f"it holds {name}")


def facts_of(manifest: Manifest) -> dict[str, Any]:
    """What the file of a manifest holds."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "grid": str(manifest.grid),
        "vq": manifest.vq,
        "keys": asdict(manifest.keys),
        "structure": manifest.structure,
        "shards": [asdict(shard) for shard in manifest.shards],
    }


def manifest_of(path: Path, facts: Any) -> Manifest:
    """The manifest at `path` that holds these facts.

    Raises:
        ValueError, InputError: It is none.
    """
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ValueError(f"it does not have the format {FORMAT!r}")
    if facts.get("version") != VERSION or isinstance(facts["version"], bool):
        raise ValueError(f"its version is {shown(facts.get('version'))}, not {VERSION}")
    if facts.keys() != FIELDS:
        raise ValueError(f"its fields are not {', '.join(sorted(FIELDS))}")
    entries = facts["shards"]
    if not isinstance(entries, list) or not 1 <= len(entries) <= MOST_SHARDS:
        raise ValueError(f"it does not list 1 to {MOST_SHARDS} shards")
    shards = tuple(_shard(number, entry) for number, entry in enumerate(entries))
    _check_order(shards)
    if not isinstance(facts["grid"], str):
        raise ValueError(f"its grid is {shown(facts['grid'])}")
    return Manifest(
        path,
        Grid.parse(facts["grid"]),
        _sha256("vq", facts["vq"]),
        _keys(facts["keys"]),
        _structure(facts["structure"]),
        shards,
    )


def _shard(number: int, entry: Any) -> Shard:
    if not isinstance(entry, dict) or entry.keys() != {"file", "first", "pictures", "sha256"}:
        raise ValueError(f"shard {number} does not have a file, first, pictures and sha256")
    file, first, pictures = entry["file"], entry["first"], entry["pictures"]
    if not isinstance(file, str) or not NAME.fullmatch(file):
        raise ValueError(
            f"the file of shard {number} is {shown(file)}, which is no .safetensors file of its "
            "folder"
        )
    for name, count in (("first", first), ("pictures", pictures)):
        if type(count) is not int or not 0 <= count <= MOST_PICTURES:
            raise ValueError(f"{name} of shard {number} is {shown(count)}")
    return Shard(file, first, pictures, _sha256(f"sha256 of shard {number}", entry["sha256"]))


def _check_order(shards: Sequence[Shard]) -> None:
    """Every picture must be in one shard, and every file be one shard."""
    if len({shard.file.casefold() for shard in shards}) < len(shards):
        raise ValueError("a file is listed twice")
    firsts = list(accumulate((shard.pictures for shard in shards), initial=0))
    for number, (shard, first) in enumerate(zip(shards, firsts, strict=False)):
        if shard.first != first:
            raise ValueError(
                f"shard {number} begins with picture {shard.first} where {first} comes next"
            )
        if shard.pictures == 0:
            raise ValueError(f"shard {number} has no pictures")
    if firsts[-1] > MOST_PICTURES:
        raise ValueError(f"its {firsts[-1]} pictures are more than {MOST_PICTURES}")


def _sha256(name: str, text: Any) -> str:
    if not isinstance(text, str) or not SHA256.fullmatch(text):
        raise ValueError(f"{name} is {shown(text)}, which is no SHA-256")
    return text


def _structure(name: Any) -> str:
    if not isinstance(name, str) or name not in ("flat", "ivf", "compact", "bits"):
        raise ValueError(f"its structure is {shown(name)}")
    return name


def _keys(facts: Any) -> KeySpec:
    names = set(asdict(KeySpec()))
    if not isinstance(facts, dict) or facts.keys() != names:
        raise ValueError(f"its keys are not {', '.join(sorted(names))}")
    return KeySpec(**facts)


def save_shards(path: Path, indexes: Iterable[PatchIndex]) -> Manifest:
    """Write indexes as the shards of one, beside their manifest at `path`; each is asked for when
    the one before is written.

    Raises:
        InputError: A file cannot be written.
    """
    files = []
    for number, index in enumerate(indexes):
        files.append(path.parent / shard_name(path, number))
        save_index(index, files[-1])
    return save_manifest(describe(path, files))


def shard_name(path: Path, number: int, build: str = "") -> str:
    """The file of a shard beside the manifest at `path`.

    Args:
        build: Tells the shards of different builds apart.
    """
    return f"{'-'.join(filter(None, (path.stem, build, f'{number:05d}')))}.safetensors"


def save_manifest(manifest: Manifest) -> Manifest:
    """Write a manifest; returns it as read from its file.

    Raises:
        InputError: It cannot be written.
    """
    write_text(manifest.path, json.dumps(facts_of(manifest), indent=1))
    return read_manifest(manifest.path)


def describe(path: Path, files: Sequence[Path]) -> Manifest:
    """The manifest at `path` of index files, which are or will be beside it. One is open at a
    time.

    Raises:
        InputError: A file cannot be read.
    """
    first, count, shards = load_index(files[0]), 0, []
    for file in files:
        pictures = len((first if file == files[0] else load_index(file)).tokens)
        shards.append(Shard(file.name, count, pictures, read_header(file)[FINGERPRINT]))
        count += pictures
    vq = codebook_hash(first.codebook)
    return Manifest(path, first.grid, vq, first.spec, first.structure, tuple(shards))


def file_bytes(path: Path) -> int:
    """Bytes of an index: of its file, or of its manifest and the shards beside it.

    Raises:
        InputError: As of `read_manifest`.
    """
    files = [path]
    if is_manifest(path):
        manifest = read_manifest(path)
        files += map(manifest.place, manifest.shards)
    return sum(file.stat().st_size for file in files)


def open_shard(manifest: Manifest, number: int) -> PatchIndex:
    """The index of a shard.

    Raises:
        InputError: It is missing, damaged, or not what the manifest says.
    """
    shard = manifest.shards[number]
    name = f"shard {number} ({shard.file}) of {manifest.path}"
    try:
        index = load_index(manifest.place(shard))
        fingerprint = read_header(manifest.place(shard))[FINGERPRINT]
    except InputError as error:
        raise InputError(f"{name} cannot be used: {error}") from error
    for what, found, promised in (
        ("sha256", fingerprint, shard.sha256),
        ("number of pictures", len(index.tokens), shard.pictures),
        ("grid", index.grid, manifest.grid),
        ("VQ", codebook_hash(index.codebook), manifest.vq),
        ("keys", index.spec, manifest.keys),
        ("structure", index.structure, manifest.structure),
    ):
        if found != promised:
            raise InputError(
                f"{name} is another file than the manifest names: its {what} is {found}, not "
                f"{promised}; copy the shard again, or build the index again"
            )
    return index
