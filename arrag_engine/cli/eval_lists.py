"""`eval geneval`, `eval dpg` and `eval prompts`: draw a list of prompts for other programs to
score."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bounds import BATCH, FIRST_SEED, LIMIT, PICTURES_EACH
from ..errors import InputError
from ..evaluate.benchmark import ADAPTED, METHODS, Progress, evenly
from ..evaluate.prompt_lists import PromptList, read_dpg, read_geneval, read_prompts
from ..paths import check_work_folder, given_name
from .generate import load_adapter_flag
from .layers import add_retrieval_flags, check_layer_flags, chosen_layers, told_layers
from .parser import number, some_of
from .progress import Bars, say
from .sampling import add_sampling_flags, add_schedule_flags, chosen_sampling, chosen_schedule
from .shared import add_model_flags, check_adapter, check_inputs, load_model

if TYPE_CHECKING:
    import torch

    from ..checkpoints import Checkpoint
    from ..evaluate.listed import Way
    from ..faid import Faid

    Drawer = tuple[Checkpoint, Faid | None]
    from ..index import PatchIndex

LISTS: dict[str, tuple[str, str]] = {
    "geneval": (
        "draw GenEval's prompts in the layout of its scorer",
        "evaluation_metadata.jsonl of GenEval",
    ),
    "dpg": (
        "draw DPG-Bench's prompts in the layout of its scorer",
        "folder dpg_bench/prompts of DPG-Bench",
    ),
    "prompts": (
        "draw any list of prompts as numbered pictures",
        "file with a prompt in each line, or .jsonl, .csv or .tsv",
    ),
}
"""Help of each command, and of its --prompts."""
SEEDS = {"geneval": 4, "dpg": 4, "prompts": 1}
"""Pictures of a prompt: GenEval's and DPG-Bench's own numbers."""
NOTES = 8
"""How many notes on prompts are printed."""


def add_list_parsers(suites: Any) -> None:
    for name, (told, prompts) in LISTS.items():
        parser = suites.add_parser(name, help=told, description=f"{told[0].upper()}{told[1:]}.")
        parser.set_defaults(run=draw_list)
        add_list_flags(parser, name, prompts)


def add_list_flags(parser: argparse.ArgumentParser, name: str, prompts: str) -> None:
    add: Callable[..., Any] = parser.add_argument
    parser.set_defaults(resumes=True)
    add("--prompts", required=True, type=Path, help=prompts)
    if name == "prompts":
        add(
            "--column",
            check=given_name,
            help="field of a JSONL object or CSV row that has the prompt (default: prompt, caption "
            "or text)",
        )
    add("--out", required=True, type=Path, help="folder to write to, and to go on in")
    add_model_flags(parser)
    add_retrieval_flags(parser)
    add(
        "--adapter",
        check=given_name,
        help="for the method faid: path or shipped name (default: the model's own blenders)",
    )
    add(
        "--methods",
        check=some_of(METHODS),
        help=f"some of {','.join(METHODS)} (default: plain, and daid,control with an index)",
    )
    add_sampling_flags(parser)
    add_schedule_flags(parser)
    add(
        "--negative",
        default="",
        metavar="TEXT",
        help="negative prompt (default: none)",
    )
    add("--seeds", **number(PICTURES_EACH), default=SEEDS[name], help="pictures of each prompt")
    add("--first-seed", **number(FIRST_SEED), default=0, help="seed of a prompt's first picture")
    add("--batch", **number(BATCH), default=4, help="pictures of a prompt to draw at once")
    add("--limit", **number(LIMIT), help="so many prompts, evenly taken (default: all)")
    add(
        "--shard",
        check=shard_of,
        default="1/1",
        metavar="I/N",
        help="draw every N-th prompt from the I-th on, beside other shards in the same folder",
    )


def shard_of(value: str, name: str) -> str:
    """The value of --shard, unchanged.

    Raises:
        InputError: It is not I/N with I from 1 to N.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", value)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"{name} is {value}; write I/N with I from 1 to N, such as 2/4")
    return value


def draw_list(a: argparse.Namespace) -> int:
    """Draw the prompts that are not drawn yet."""
    methods = checked_methods(a)
    prompts = read_list(a.suite, a)
    drawer = load_drawer(a, methods)
    with Bars() as bars:
        draw_run(a, methods, prompts, drawer, bars)
    print(*(a.out / method for method in methods), sep="\n")
    return 0


def draw_run(
    a: argparse.Namespace,
    methods: Sequence[str],
    prompts: PromptList,
    drawer: Drawer,
    progress: Progress,
) -> dict[str, Any]:
    """Draw what the folder of a run lacks; returns what its journal has."""
    from ..evaluate.journal import Shard, open_journal
    from ..evaluate.layouts import LAYOUTS
    from ..evaluate.listed import check_entries, draw_entries

    way = make_way(a, methods, drawer)
    chosen = evenly(prompts.entries, a.limit)
    for note in shortened(check_entries(way, chosen, methods)):
        say(note)
    shard = Shard(*map(int, a.shard.split("/")))
    seeds = range(a.first_seed, a.first_seed + a.seeds)
    settings = run_settings(a, way, prompts)
    with open_journal(a.out, settings, run_facts(a, way.checkpoint.model.device), shard) as journal:
        run = (way, shard.of(chosen), methods, seeds, a.batch, a.out, LAYOUTS[a.suite])
        draw_entries(*run, journal, progress)
    return journal.done


def checked_methods(a: argparse.Namespace) -> list[str]:
    """The methods of a command whose flags fit together; refused before anything is loaded."""
    retrieves = a.index is not None or a.layers is not None
    if a.methods is None:
        a.methods = "plain,daid,control" if retrieves else "plain"
    methods = str(a.methods).split(",")
    check_layer_flags(a)
    needing = [method for method in methods if method != "plain"]
    if needing and not retrieves:
        raise InputError(
            f"the method {needing[0]} looks patches up; pass an index with --index, or draw with "
            "--methods plain"
        )
    if a.suite == "dpg" and a.seeds != SEEDS["dpg"]:
        raise InputError(
            f"--seeds is {a.seeds}; DPG-Bench's scorer reads 4 pictures of each prompt from one "
            "file, so omit --seeds"
        )
    check_inputs(a)
    check_work_folder(a.out)
    check_adapter(a.adapter)
    return methods


def read_list(suite: str, a: argparse.Namespace) -> PromptList:
    if suite == "geneval":
        return read_geneval(a.prompts)
    return read_dpg(a.prompts) if suite == "dpg" else read_prompts(a.prompts, a.column)


def load_drawer(a: argparse.Namespace, methods: Sequence[str]) -> Drawer:
    """The model, and its adapter where a method needs one."""
    checkpoint = load_model(a)
    from ..faid import Faid

    adapted = any(method in ADAPTED for method in methods)
    return checkpoint, Faid(load_adapter_flag(checkpoint, a.adapter)) if adapted else None


def make_way(a: argparse.Namespace, methods: Sequence[str], drawer: Drawer) -> Way:
    """How the flags draw."""
    checkpoint, faid = drawer
    from ..api import searched_on
    from ..evaluate.listed import Way

    layers = chosen_layers(a) if list(methods) != ["plain"] else []
    return Way(
        checkpoint,
        layers,
        faid,
        chosen_sampling(a),
        chosen_schedule(a),
        a.negative,
        searched_on(checkpoint),
    )


def shortened(notes: Sequence[str]) -> list[str]:
    if len(notes) <= NOTES:
        return list(notes)
    return [*notes[:NOTES], f"{len(notes) - NOTES} more notes on prompts are not shown."]


def model_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """What identifies a model, and what it recommends."""
    from ..recommended import recommended

    return {
        "weights": checkpoint.fingerprint,
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
        "recommended": asdict(recommended(checkpoint)),
    }


def run_settings(a: argparse.Namespace, way: Way, prompts: PromptList) -> dict[str, Any]:
    """All that decides the pictures. Methods and limit only choose which of them are drawn."""
    from ..index import one_file

    told = [facts for facts, _ in told_layers(a)] if way.layers else []
    layers = [
        {**facts, **index_facts(one_file(layer.index))}
        for facts, layer in zip(told, way.layers, strict=True)
    ]
    settings = model_facts(way.checkpoint) | {
        "benchmark": a.suite,
        "prompts": prompts.digest,
        "seeds": [a.first_seed, a.seeds],
        "batch": a.batch,
        "sampling": asdict(chosen_sampling(a)),
        "schedule": asdict(chosen_schedule(a)),
        "negative": a.negative,
    }
    if layers:
        settings["layers"] = {str(number): layer for number, layer in enumerate(layers, start=1)}
    if way.faid is not None:
        settings["adapter"] = adapter_digest(a.adapter)
    return settings


def index_facts(index: PatchIndex) -> dict[str, Any]:
    """What identifies an index, whatever its file is called."""
    from ..checkpoints.adapter import index_fingerprint

    found = {"patches": index_fingerprint(index), "built": asdict(index.spec)}
    return found | {"index": index.searcher.kind}


def adapter_digest(name: str | None) -> str:
    """What identifies an adapter; empty for the model's own."""
    from ..evaluate.journal import sha256
    from ..shipped import ADAPTERS, resolve

    return "" if name is None else sha256(resolve(name, ADAPTERS))


def run_facts(a: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Names, versions and device, for the manifest."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    versions = {"python": sys.version.split()[0]}
    for package in ("arrag", "torch", "numpy", "faiss-cpu", "Pillow"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed as a package"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    names = {kind: getattr(a, kind) for kind in ("model", "index", "adapter")}
    return {**names, "versions": versions, "device": name}
