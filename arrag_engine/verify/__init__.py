"""Checks of the engine against golden numbers of the reference programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.weights import read_json
from ..errors import InputError
from . import showo
from .drawing import check_daid, check_db, check_vanilla, check_vq
from .faid import check_faid
from .golden import Check, Fixture, Golden, Values, compare

NEEDED_FILES = {
    "vq": ["model"],
    "vanilla": ["model"],
    "db": [],
    "daid": ["model", "db", "vanilla"],
    "faid": ["model", "faid_additional", "db", "vanilla"],
}
"""What a group's checks stand on, besides its own file."""
Group = Callable[[Any, Golden], Values]
GROUPS: dict[str, Group] = {
    "vq": check_vq,
    "vanilla": check_vanilla,
    "db": check_db,
    "daid": check_daid,
    "faid": check_faid,
}
SHOW_O_MODEL = ["showo_model", "vq_model"]
SHOW_O_FILES = {
    "preprocess": [],
    "vq": ["preprocess", *SHOW_O_MODEL],
    "prompts": [],
    "vanilla": SHOW_O_MODEL,
    "t2i": ["prompts", *SHOW_O_MODEL],
    "db": ["vq", "vanilla"],
    "daid_proposed": ["db", "prompts", *SHOW_O_MODEL],
}
SHOW_O_GROUPS: dict[str, Group] = {
    "preprocess": showo.check_preprocess,
    "vq": showo.check_vq,
    "prompts": showo.check_prompts,
    "vanilla": showo.check_vanilla,
    "t2i": showo.check_t2i,
    "db": showo.check_db,
    "daid_proposed": showo.check_daid,
}


def verify_folder(folder: Path) -> Iterator[Check]:
    """Run every check that the files in `folder` allow.

    Raises:
        InputError: There is no such folder, or its settings or model cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    settings = read_json(folder / "settings.json")
    if "mask_token_id" in settings:  # which no model in raster order has
        fixture = showo.ShowOFixture(folder, settings)
        yield from _checked(fixture, SHOW_O_GROUPS, SHOW_O_FILES, "showo-")
    else:
        yield from _checked(Fixture(folder), GROUPS, NEEDED_FILES, "")


def _checked(
    fixture: Any, groups: dict[str, Group], needed: dict[str, list[str]], prefix: str
) -> Iterator[Check]:
    """The checks of all groups; names begin with `prefix`."""
    for group, run in groups.items():
        label = f"{prefix}{group}"
        if missing := [name for name in (group, *needed[group]) if not fixture.has(name)]:
            reason = f"there is no {missing[0]}.safetensors"
            yield Check(f"{label}.*", "skipped", reason=reason)
            continue
        golden = fixture.golden(group)
        with torch.inference_mode():
            checks = [
                compare(f"{label}.{name}", golden, name, value, limit, *wanted)
                for name, limit, value, *wanted in run(fixture, golden)
            ]
        yield from checks
