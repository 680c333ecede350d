"""Checks of paths before the work; nodes, command line and engine share them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .bounds import shown
from .errors import InputError

TENSORS = ".safetensors"
"""Files of this suffix are listed and opened by it, in small letters only."""
MAX_NAME = 230
"""Bytes of the name of a file to write. File systems allow 255, and a part of it is written beside
it under a longer name."""


def given_name(value: str, name: str) -> str:
    """The value of an option, unchanged.

    Raises:
        InputError: It is empty, as from an unset shell variable.
    """
    if not value.strip():
        raise InputError(f"{name} is empty; pass a value")
    return value


def given_path(value: str, name: str) -> Path:
    """The path that an option names.

    Raises:
        InputError: It is empty, or no path.
    """
    if "\0" in given_name(value, name):
        raise InputError(f"{name} is {shown(value)}, which is no path; choose another one")
    return Path(value)


def look_at(path: Path) -> os.stat_result | None:
    """The status of a file or folder; None if there is none.

    Raises:
        InputError: It cannot be looked at: no permission, too long a name, a loop of links.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise cannot("read", path, error) from error


def is_folder(path: Path) -> bool:
    """Whether it is a folder; errors as of `look_at`."""
    facts = look_at(path)
    return facts is not None and stat.S_ISDIR(facts.st_mode)


def cannot(what: str, path: Path, error: Exception) -> InputError:
    """The sentence for an error of the system."""
    reason = getattr(error, "strerror", None) or error
    return InputError(f"cannot {what} {shown_path(path)}: {reason}; choose another path")


def shown_path(path: Path) -> str:
    """A path as a message shows it: shortened if it is very long."""
    text = str(path)
    return text if len(text) <= 2 * MAX_NAME else f"{text[:MAX_NAME]}...{text[-MAX_NAME // 2 :]}"


def check_file(path: Path) -> Path:
    """The path of a file that can be read.

    Raises:
        InputError: There is none, it is a folder, or it cannot be read.
    """
    if look_at(path) is None:
        raise InputError(f"there is no file {shown_path(path)}")
    if is_folder(path):
        raise InputError(f"{shown_path(path)} is a folder; choose a file")
    return _readable(path, os.R_OK)


def check_folder(path: Path) -> Path:
    """The path of a folder that can be looked into.

    Raises:
        InputError: There is none, it is a file, or it cannot be looked into.
    """
    if look_at(path) is None:
        raise InputError(f"there is no folder {shown_path(path)}")
    if not is_folder(path):
        raise InputError(f"{shown_path(path)} is a file; choose a folder")
    return _readable(path, os.R_OK | os.X_OK)


def check_readable(path: Path) -> Path:
    """The path of a file or folder that can be read.

    Raises:
        InputError: There is none, or it cannot be read.
    """
    if look_at(path) is None:
        raise InputError(f"there is no file or folder {shown_path(path)}")
    return check_folder(path) if is_folder(path) else check_file(path)


def _readable(path: Path, mode: int) -> Path:
    if not os.access(path, mode):
        raise InputError(f"{shown_path(path)} cannot be read: permission denied; change its mode")
    return path


def check_output(out: Path, suffix: str) -> Path:
    """The path of a file that can be written and opened again.

    Raises:
        InputError: It cannot be written.
    """
    if (out.suffix.lower() if suffix != TENSORS else out.suffix) != suffix:
        raise InputError(f"{shown_path(out)} must end in {suffix}")
    check_name(out)
    if is_folder(out):
        raise InputError(f"{out} is a folder; choose a file name")
    if not is_folder(out.parent):
        raise InputError(f"there is no folder {out.parent} to write {out.name} to; create it first")
    _check_writable(out.parent)
    return out


def check_name(path: Path) -> None:
    """Refuse a name that file systems do not take.

    Raises:
        InputError: It is too long.
    """
    size = len(os.fsencode(path.name))
    if size > MAX_NAME:
        raise InputError(
            f"the file name {path.name[:40]}... has {size} bytes, at most {MAX_NAME} are allowed; "
            "choose a shorter one"
        )


def check_work_folder(folder: Path) -> Path:
    """The path of a folder that can be written to, or made.

    Raises:
        InputError: It cannot.
    """
    check_name(folder)
    place = folder
    while look_at(place) is None:
        place = place.parent
    if not is_folder(place):
        raise InputError(f"cannot make {folder}: {place} is a file; choose another folder")
    _check_writable(place)
    return folder


def _check_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"the folder {folder} cannot be written to; choose another one")
