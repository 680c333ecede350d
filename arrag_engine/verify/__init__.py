"""Checks of the engine against golden numbers of the reference programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import InputError
from .drawing import check_daid, check_db, check_vanilla, check_vq
from .faid import check_faid
from .golden import Check, Fixture, compare

NEEDED_FILES = {
    "vq": ["model"],
    "vanilla": ["model"],
    "db": [],
    "daid": ["model", "db", "vanilla"],
    "faid": ["model", "faid_additional", "db", "vanilla"],
}
"""What a group's checks stand on, besides its own file."""


def verify_folder(folder: Path) -> Iterator[Check]:
    """Run every check that the files in `folder` allow.

    Raises:
        InputError: There is no such folder, or its settings or model cannot be read.
    """
    if not Path(folder).is_dir():
        raise InputError(f"there is no folder {folder}")
    fixture = Fixture(Path(folder))
    groups = {
        "vq": check_vq,
        "vanilla": check_vanilla,
        "db": check_db,
        "daid": check_daid,
        "faid": check_faid,
    }
    for group, run in groups.items():
        if missing := [name for name in (group, *NEEDED_FILES[group]) if not fixture.has(name)]:
            reason = f"there is no {missing[0]}.safetensors"
            yield Check(f"{group}.*", "skipped", reason=reason)
            continue
        golden = fixture.golden(group)
        with torch.inference_mode():
            checks = [
                compare(f"{group}.{name}", golden, name, value, limit, *wanted)
                for name, limit, value, *wanted in run(fixture, golden)
            ]
        yield from checks
