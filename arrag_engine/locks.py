"""Locks: only one program at a time writes a file or folder."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError

if sys.platform == "win32":
    import msvcrt

    def _take(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _take(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


HELD = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of `target` while the block runs.

    The lock is the system's, on the file `.NAME.lock` beside the target: it ends with the process,
    even a killed one. The file is deleted when the block ends; a file that is left over is no lock.

    Raises:
        InputError: Another program holds it, or the folder cannot be written to.
    """
    path = Path(os.path.abspath(target))
    path = path.parent / f".{path.name}.lock"
    handle = _acquire(path, target)
    try:
        yield
    finally:
        if os.name == "nt":  # Windows deletes no open file, so this cannot delete another process's
            os.close(handle)
        with suppress(OSError):
            path.unlink()
        if os.name != "nt":
            os.close(handle)


def _acquire(path: Path, target: Path) -> int:
    """A handle of the lock file, locked."""
    while True:
        try:
            handle = os.open(path, FLAGS, 0o666)
        except FileNotFoundError as error:
            raise InputError(f"there is no folder {target.parent}; create it first") from error
        except OSError as error:
            raise InputError(
                f"cannot write {target}: {error.strerror}; choose another folder"
            ) from error
        try:
            _lock(handle, target)
        except BaseException:
            os.close(handle)
            raise
        if _is(path, handle):
            return handle
        os.close(handle)  # its previous holder has just deleted it


def _lock(handle: int, target: Path) -> None:
    try:
        _take(handle)
    except OSError as error:
        if error.errno in HELD:
            raise InputError(
                f"another program is writing {target}; wait for it or choose another name"
            ) from error
        warnings.warn(  # some network disks: to refuse them would be worse
            f"{target} is on a disk without file locks; write it with one program at a time",
            stacklevel=4,
        )


def _is(path: Path, handle: int) -> bool:
    """Whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False
