"""Writing files so that a reader only ever sees a complete one, and recognising kinds of files."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from .errors import InputError

NAME_PART = 40
"""Letters of a file's name in the name of its temporary file, which may not be longer than the
system allows."""
LOOK = 512
"""Bytes at the beginning of a file that its kind is recognised by."""
HTML = (b"<!doctype html", b"<html", b"<head", b"<?xml")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` once its bytes are on disk.

    Its mode is what the umask leaves, as of every new file; no mode is set afterwards, which some
    network and FUSE file systems refuse.

    Raises:
        InputError: The folder does not exist or cannot be written to, the disk is full, or `path`
            is open in a program that does not let it be replaced.
    """
    path = Path(path)
    try:
        temporary = _new_file(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another folder") from error
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        move_file(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        shown = str(reason).replace(str(temporary), str(path))
        raise InputError(
            f"cannot write {path}: {shown}; free some space or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as `atomic_write` does, in UTF-8."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _new_file(path: Path) -> Path:
    """An empty file of a name that nothing else has, in the folder of `path`."""
    with suppress(FileNotFoundError):
        os.lstat(path)  # a name that is too long is found out now, not by the renaming
    while True:
        name = f".{path.name[:NAME_PART]}.{secrets.token_hex(4)}.part"
        temporary = path.with_name(name)
        try:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
        except FileExistsError:
            continue
        return temporary


def move_file(source: Path, path: Path) -> None:
    """Rename a file onto `path`, on the same disk.

    Raises:
        InputError: `path` is open in a program that does not let it be replaced.
    """
    try:
        source.replace(path)
    except PermissionError as error:  # Windows replaces no file that is open anywhere
        raise InputError(
            f"cannot replace {path}: {error.strerror}; close the program that has it open, or "
            "choose another name"
        ) from error


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in the encoding of its byte-order mark.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not text.
    """
    data = path.read_bytes()
    return data.decode(json.detect_encoding(data))


def check_kind(path: Path, file: BinaryIO) -> None:
    """Refuse files that are often saved in the place of a weight or a JSON file.

    Raises:
        InputError: It is a Git LFS pointer, a web page, or weights of another format.
    """
    head = file.read(LOOK)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{path} is a Git LFS pointer, which stands for the file; fetch the file itself with "
            "'git lfs pull' or with the download link of its page"
        )
    if text.startswith(HTML):
        raise InputError(
            f"{path} is a web page saved under that name; use the download link of the file"
        )
    if head.startswith(b"GGUF"):
        raise InputError(f"{path} is {GGUF}")


GGUF = (
    "a GGUF file, which this program does not read; download the model as .safetensors or .bin "
    "files"
)
"""The end of a message about a file of this kind."""
