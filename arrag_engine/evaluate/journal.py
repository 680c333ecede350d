"""What a run has done, kept on disk as it is done: a run that is stopped goes on where it was.

In the folder of a run, `manifest.json` says what it draws with and, once it has ended or been
stopped, names each picture with its SHA-256; `done.jsonl` has a line for every piece of work. The
shards of a run, which may share the folder, have files of their own: `done-2-of-4.jsonl`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..bounds import shown
from ..errors import InputError
from ..files import write_text
from ..locks import locked

Key = Sequence[str | float]
"""Names a piece of work, such as (method, number of the prompt)."""
SETTINGS = "settings"


@dataclass(frozen=True)
class Shard:
    """A part of a run: every `count`-th prompt, from the `number`-th on."""

    number: int = 1
    count: int = 1

    def of(self, items: Sequence[Any]) -> list[Any]:
        """Its share of some items."""
        return list(items[self.number - 1 :: self.count])

    @property
    def end(self) -> str:
        """What its files' names end with."""
        return "" if self.count == 1 else f"-{self.number}-of-{self.count}"


WHOLE = Shard()


@dataclass
class Journal:
    """The pieces of work that are done, by key; on disk if it has a file."""

    done: dict[str, Any] = field(default_factory=dict)
    file: BinaryIO | None = None

    def get(self, key: Key) -> Any:
        """What was kept of a piece of work; None if it is not done."""
        return self.done.get(name_of(key))

    def put(self, key: Key, result: Any) -> None:
        """Keep the result of a piece of work, which JSON can hold."""
        self.done[name_of(key)] = result
        if self.file is not None:
            line = json.dumps([list(key), result], ensure_ascii=False)
            self.file.write(f"{line}\n".encode())
            self.file.flush()

    def once(self, key: Key, work: Callable[[], Any]) -> Any:
        """What was kept of a piece of work, which is done now if it is not yet."""
        if (kept := self.get(key)) is None:
            kept = work()
            self.put(key, kept)
        return kept


def name_of(key: Key) -> str:
    """What `Journal.done` calls a piece of work."""
    return json.dumps(list(key))


@contextmanager
def open_journal(
    folder: Path | None,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
    shard: Shard = WHOLE,
) -> Iterator[Journal]:
    """The journal of a run's folder, which is made if it is not there; without a folder nothing is
    kept. What other shards have done is in it too.

    Args:
        settings: All that decides what a piece of work results in; JSON can hold it.
        facts: What the manifest says besides.

    Raises:
        InputError: The folder was begun with other settings, another program is at work on the same
            shard, or a file cannot be read or written.
    """
    if folder is None:
        yield Journal()
        return
    settings = json.loads(json.dumps(settings))
    path = folder / f"done{shard.end}.jsonl"
    _make(folder)
    with locked(path):
        _check_same(folder, settings)
        head = {SETTINGS: settings, **facts, "shard": [shard.number, shard.count]}
        manifest = folder / f"manifest{shard.end}.json"
        if not manifest.is_file():
            _write(manifest, head)
        _drop_torn_line(path)
        with path.open("ab") as file:
            try:
                yield Journal(_read_done(folder), file)
            finally:
                _write(manifest, head | {"pictures": _pictures(_read_done(folder))})


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make {folder}: {error.strerror}; choose another folder"
        ) from error


def _write(path: Path, facts: Any) -> None:
    write_text(path, json.dumps(facts, indent=1, ensure_ascii=False))


def read_manifests(folder: Path) -> dict[Path, dict[str, Any]]:
    """What the manifests in a folder say.

    Raises:
        InputError: One cannot be read.
    """
    manifests = {}
    for path in sorted(folder.glob("manifest*.json")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(facts[SETTINGS], dict):
                raise TypeError(f"{SETTINGS} is no object")
            manifests[path] = facts
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path} is damaged ({str(error)[:80]}); choose another --out folder"
            ) from error
    return manifests


def _check_same(folder: Path, settings: Mapping[str, Any]) -> None:
    for path, facts in read_manifests(folder).items():
        before, now = _flat(facts[SETTINGS]), _flat(settings)
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise InputError(
                    f"{path} was begun with {name} {shown(before.get(name))}, this command has "
                    f"{shown(now.get(name))}; use the same settings, or choose another --out folder"
                )


def _flat(facts: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested values by names such as `sampling.cfg`."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[before + name] = value
    return flat


def _read_done(folder: Path) -> dict[str, Any]:
    """The results in all journals of a folder. A last line that a kill cut off is not done."""
    done: dict[str, Any] = {}
    for path in sorted(folder.glob("done*.jsonl")):
        *lines, _ = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                key, result = json.loads(line)
                done[name_of(key)] = result
            except (ValueError, TypeError, RecursionError) as error:
                raise InputError(
                    f"line {number} of {path} is damaged ({str(error)[:80]}); delete that line, so "
                    "that its pictures are drawn again"
                ) from error
    return done


def _drop_torn_line(path: Path) -> None:
    """Cut off what stands behind the last line feed."""
    if not path.is_file():
        return
    whole = path.read_bytes().rfind(b"\n") + 1
    with path.open("rb+") as file:
        file.truncate(whole)


def digests(folder: Path, files: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each file, by its path from a folder on."""
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def unchanged(folder: Path, files: Mapping[str, str]) -> bool:
    """Whether all files are there, as they were written."""
    return all(
        (folder / name).is_file() and sha256(folder / name) == digest
        for name, digest in files.items()
    )


def _pictures(done: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of all files that results name."""
    found: dict[str, str] = {}
    for result in done.values():
        if isinstance(result, dict):
            found |= result.get("files", {})
    return dict(sorted(found.items()))
