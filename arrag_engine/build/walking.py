"""What is in a folder and in all below it."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

HELPERS = {"@eadir", "__macosx", "$recycle.bin", "system volume information", "lost+found"}
"""Folders that systems make for themselves, in lower case: thumbnails, trash."""
SETTLED = 3 * 10**9
"""Nanoseconds after which every file system gives a changed folder another time stamp."""


@dataclass
class Place:
    """A folder."""

    path: str
    below: str
    """Its path below the first folder with a slash at the end; empty for the first one."""
    files: list[str] = field(default_factory=list)
    """Names of what is no folder, in order."""
    folders: list[str] = field(default_factory=list)
    hidden_files: int = 0
    hidden_folders: int = 0


def walk(root: str, report: Callable[[OSError], object]) -> Iterator[Place]:
    """Every folder from `root` down once, links to folders last; hidden ones are only counted.

    Args:
        report: Called with the error of every folder that cannot be listed.
    """
    waiting, links, seen = [(root, "")], [], set()
    while waiting or links:
        path, below = waiting.pop() if waiting else links.pop(0)
        if (real := os.path.realpath(path)) in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(path) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            report(error)
            continue
        place = Place(path, below)
        for entry in entries:
            if _add(place, entry):
                following = links if entry.is_symlink() else waiting
                following.append((entry.path, f"{below}{entry.name}/"))
        yield place


def _add(place: Place, entry: os.DirEntry[str]) -> bool:
    """Count the entry in; returns whether it is a folder to walk into."""
    folder, hidden = _is_folder(entry), _is_hidden(entry)
    if hidden:
        place.hidden_folders += folder
        place.hidden_files += not folder
    else:
        (place.folders if folder else place.files).append(entry.name)
    return folder and not hidden


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_hidden(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith(".") or entry.name.lower() in HELPERS:
        return True
    if os.name != "nt":
        return False
    facts = entry.stat(follow_symlinks=False)  # costs nothing there
    return bool(facts.st_file_attributes & stat.FILE_ATTRIBUTE_HIDDEN)


class FolderTimes:
    """Folders and their times; a folder is listed again only when its time has changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, list[str]]] = {}

    def subfolders(self, path: str) -> tuple[int, list[str]]:
        """(when a name in the folder last changed [ns], names of folders in it that are not
        hidden); (0, []) if it cannot be looked into."""
        try:
            changed = os.stat(path).st_mtime_ns
            known = self._known.get(path)
            if known is not None and known[0] == changed:
                return known
            with os.scandir(path) as scan:
                names = sorted(e.name for e in scan if _is_folder(e) and not _is_hidden(e))
        except OSError:
            return 0, []
        if time.time_ns() - changed > SETTLED:
            self._known[path] = changed, names
        return changed, names

    def state(self, root: str) -> str:
        """A hash that changes when a file is added, taken away or renamed anywhere below `root`."""
        digest, waiting, seen = hashlib.sha256(), [root], set()
        while waiting:
            path = waiting.pop()
            if (real := os.path.realpath(path)) in seen:
                continue
            seen.add(real)
            changed, names = self.subfolders(path)
            digest.update(f"{path}|{changed}\n".encode(errors="replace"))
            waiting += [os.path.join(path, name) for name in names]
        return digest.hexdigest()
