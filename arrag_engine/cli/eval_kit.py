"""`eval kit`: measure a model and recommend values, on its owner's machine."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import shipped
from ..paths import check_folder, check_work_folder
from .eval_lists import run_facts
from .progress import Bars
from .shared import add_model_flags, check_inputs, load_model

if TYPE_CHECKING:
    import torch

ALSO = {"cuda": ("int8", "fp8", "fp32"), "mps": ("fp32",)}
"""Measured on a kind of device beside the dtype that draws."""


def add_kit_parser(suites: Any) -> None:
    told = "measure a model and what retrieval does for it, and recommend values"
    parser = suites.add_parser("kit", help=told, description=f"{told[0].upper()}{told[1:]}.")
    parser.set_defaults(run=kit, resumes=True)
    add: Callable[..., Any] = parser.add_argument
    add_model_flags(parser)
    add("--images", required=True, type=Path, help="folder of your pictures, best with captions")
    add("--out", required=True, type=Path, help="folder to write to, and to go on in")
    add("--quick", action="store_true", help="a rehearsal with few measurements")


def kit(a: argparse.Namespace) -> int:
    """Measure what is not measured yet, and write kit.json, kit.html and sheet.png."""
    check_folder(a.images)
    check_work_folder(a.out)
    a.index = a.adapter = None
    check_inputs(a)
    from ..api import choose_device, searched_on
    from ..checkpoints.fingerprint import read_fingerprint
    from ..checkpoints.opening import open_checkpoint
    from ..evaluate.journal import open_journal
    from ..evaluate.kit.effort import EFFORTS
    from ..evaluate.kit.run import JSON, PAGE, SHEET, run_kit

    device = choose_device(a.device, "--device")
    dtypes = chosen_dtypes(a.dtype, device)
    opened = open_checkpoint(shipped.resolve(a.model, shipped.MODELS))
    settings = {
        "benchmark": "kit",
        "weights": read_fingerprint(opened),
        "images": str(a.images),
        "dtypes": list(dtypes),
        "quick": a.quick,
        "device": str(device),
    }
    facts = run_facts(a, device)

    def load(dtype: str) -> Any:
        return load_model(argparse.Namespace(**{**vars(a), "dtype": dtype}))

    known = {name: facts[name] for name in ("versions", "device")}
    with open_journal(a.out, settings, facts) as journal, Bars() as bars:
        effort = EFFORTS[a.quick]
        found = run_kit(load, dtypes, a.images, a.out, effort, known, journal, bars, searched_on)
    for check in found["checks"]:
        if check["right"] is False:
            print(f"WRONG: {check['name']}: {check['detail']}")
    print(*(a.out / name for name in (JSON, PAGE, SHEET)), sep="\n")
    return 0


def chosen_dtypes(name: str, device: torch.device) -> tuple[str, ...]:
    """The dtypes to measure, by name; the first one draws."""
    from ..checkpoints import DTYPES, resolve_dtype

    if name != "auto":
        return (name,)
    drawing = resolve_dtype(name, device)
    own = next(short for short, dtype in DTYPES.items() if dtype == drawing)
    return tuple(dict.fromkeys((own, *ALSO.get(device.type, ()))))
