"""`train`: FAiD adapters from pictures; their loss; merging one into its base."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import shipped
from ..bounds import TRAINING
from ..errors import InputError
from ..files import write_text
from ..index import PatchIndex, load_index
from ..locks import locked
from ..paths import check_output, check_work_folder, given_name
from ..settings import COMPUTE_DTYPES, HOPS, SEMANTICS
from ..train import TrainSettings
from ..train.settings import INITS
from .parser import number
from .progress import follow, progress_bar
from .shared import Command, add_model_flags, check_adapter, check_inputs

if TYPE_CHECKING:
    from ..checkpoints import Checkpoint
    from ..faid import FaidAdapter
    from ..train import Examples, Place, RunFolder, Team

NUMBERS = {
    "steps": "updates of the weights",
    "batch": "pictures at once",
    "accumulation": "batches an update is made of, in each process",
    "lr": "highest learning rate of AdamW",
    "blender_lr": "factor on the learning rate for the blenders",
    "warmup": "share of the steps in which the learning rate rises; then it falls as a cosine",
    "weight_decay": "weight decay of AdamW",
    "clip": "longest gradient; longer ones are shortened",
    "rank": "rank of the low-rank changes of q and v; 0 = none",
    "alpha": "scale of the low-rank changes is alpha / rank",
    "dropout": "dropout in front of the low-rank changes",
    "blender_every": "stride of the layers with a blender; 0 = one only",
    "blender_from": "the first layer with a blender",
    "gain": "factor on the output of the blenders before the training",
    "candidates": "retrieved codes at each position",
    "pool": "sample the candidates of each step from this many nearest; 0 = only shuffle them",
    "caption_dropout": "share of pictures whose caption is blanked, for guidance",
    "blend_dropout": "share of the pictures with a blank caption whose blenders are off too",
    "held_out": "share of the pictures to measure with, never to train on",
    "every": "steps between measurements and checkpoints",
    "rehearse": "share of each update made up of pictures that the model draws itself before the "
    "training, so that it does not forget them; 0 = none",
    "rehearse_pictures": "how many of these to draw",
    "seed": "decides weights, order, dropout",
}
"""Fields of `TrainSettings` that are numbers, and what they mean."""
BEFORE_REHEARSAL = {"rehearse": 0.0}
"""Values of facts that runs of 0.1 lack."""


def add_commands(command: Command) -> None:
    whats = command(train).add_subparsers(
        required=True, metavar="WHAT", dest="what", help="what to do"
    )
    for run, add_flags in ((faid, _faid_flags), (loss, _loss_flags), (merge, _merge_flags)):
        parser = whats.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        add_flags(parser)


def train(a: argparse.Namespace) -> int:
    """Train FAiD adapters, measure their loss, merge them."""
    return {"faid": faid, "loss": loss, "merge": merge}[a.what](a)


def _data_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser)
    add = parser.add_argument
    add("--images", required=True, type=Path, nargs="+", help="folders of pictures with captions")
    add(
        "--index",
        check=given_name,
        help="index to look patches up in: path or shipped name (default: none)",
    )


def _faid_flags(parser: argparse.ArgumentParser) -> None:
    _data_flags(parser)
    add, default = parser.add_argument, TrainSettings()
    add("--work", required=True, type=Path, help="folder for checkpoints and log; to go on in, too")
    parser.set_defaults(resumes=True)
    add("--out", required=True, type=Path, help="adapter file to write (.safetensors)")
    add("--out-dtype", choices=COMPUTE_DTYPES, default="fp16", help="dtype of the adapter file")
    add("--merged", type=Path, help="whole model to write, base and adapter in one (default: none)")
    for name, meaning in NUMBERS.items():
        flag, value = f"--{name.replace('_', '-')}", getattr(default, name)
        add(flag, **number(TRAINING[name]), default=value, help=meaning)
    hops = [",".join(map(str, h)) for h in HOPS]
    add(
        "--hops",
        choices=hops,
        default=",".join(map(str, default.hops)),
        metavar="HOPS",
        help="windows of the blenders: 1 (3x3 positions), 2 (5x5) or 1,2 (both)",
    )
    add(
        "--init",
        choices=INITS,
        default=default.init,
        help="first output of the blenders: random, zero, or fitted to copy their candidates",
    )
    add(
        "--semantics",
        choices=SEMANTICS,
        default=default.semantics,
        help="candidates of a later blender where retrieval does not run: what the former one put "
        "out (step), or none (stepzero)",
    )
    add("--without-head", action="store_true", help="leave the generation head as it is")
    add(
        "--without-retrieval",
        action="store_true",
        help="the control: the same training without blenders",
    )
    add("--checkpointing", action="store_true", help="less memory, slower")


def _loss_flags(parser: argparse.ArgumentParser) -> None:
    _data_flags(parser)
    add = parser.add_argument
    add("--adapter", check=given_name, help="path or shipped name (default: the base alone)")
    add("--batch", **number(TRAINING["batch"]), default=8, help="pictures at once")
    add("--json", type=Path, help="report to write, with every loss (default: none)")


def _merge_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="pocket", check=given_name, help="the base: path or shipped name")
    add("--adapter", required=True, check=given_name, help="path or shipped name")
    add("--out", required=True, type=Path, help="model file to write (.safetensors)")


def faid(a: argparse.Namespace) -> int:
    """Train a FAiD adapter. Run it again to go on; `torchrun -m arrag_engine train faid …` trains
    on several devices."""
    settings = _settings(a)
    for path in (a.out, a.merged):
        if path is not None:
            check_output(path, ".safetensors")
    check_work_folder(a.work)
    if settings.retrieval == (a.index is None):
        raise InputError(
            "--without-retrieval does not use an index; omit --index"
            if a.index
            else "training needs an --index to look patches up in; name one, such as 'pocket'"
        )
    check_inputs(a)
    index = load_index(shipped.resolve(a.index, shipped.INDEXES)) if a.index else None
    import torch

    from ..train import RunFolder, join_team

    with torch.inference_mode(False), torch.enable_grad():
        base, place = _load_base(a)
        _check_trained(a, base, settings)
        with join_team(place.device) as team, _locked(a, team):
            run = RunFolder(a.work)
            try:
                adapter = _trained(a, base, index, settings, run, place, team)
            except KeyboardInterrupt:
                if team.leads:
                    _tell_stopped(run, settings)
                return 1
            if team.leads:
                _export(a, base, adapter, index, settings, run)
    return 0


def _check_trained(a: argparse.Namespace, base: Checkpoint, settings: TrainSettings) -> None:
    """Refuse what cannot be trained for this base, or not be written.

    Raises:
        InputError: See `TrainSettings.adapter`; a merged model of a layout without blenders.
    """
    from ..faid import order_for

    order = base.model.order
    settings.adapter(base.model.config.decoder.num_layers, order_for(order))
    if a.merged is not None and not order.raster:
        raise InputError(
            f"--merged writes base and adapter in the layout of Janus-Pro, {base.name} is a Show-o "
            "model; omit --merged, and draw with --adapter"
        )


@contextmanager
def _locked(a: argparse.Namespace, team: Team) -> Iterator[None]:
    """Keep other programs from what the run writes.

    Raises:
        InputError: One is writing it.
    """
    with ExitStack() as locks:
        if team.leads:
            with suppress(OSError):  # `begin` reports it
                a.work.parent.mkdir(parents=True, exist_ok=True)
            for target in filter(None, (a.work, a.out, a.merged)):
                locks.enter_context(locked(target))
        yield


def _trained(
    a: argparse.Namespace,
    base: Checkpoint,
    index: PatchIndex | None,
    settings: TrainSettings,
    run: RunFolder,
    place: Place,
    team: Team,
) -> FaidAdapter:
    from ..train import train_adapter

    examples = _examples(a, base, index, settings, run, team)
    own = _own(base, index, examples, settings, run, place, team)
    with progress_bar("step") as bar:
        bar.disable = bar.disable or not team.leads
        pace = Pace(settings, len(examples.split(settings.held_out)[0]), team, own is not None)
        follow_loss = _follow_loss(bar)

        def report(done: int, total: int, bits: float) -> None:
            follow_loss(done, total, bits)
            pace.tick(done)

        return train_adapter(base, examples, settings, run, place, team, report, own, _tell, index)


def _tell(sentence: str) -> None:
    """Write a line to stderr, above a progress bar where there is one."""
    from tqdm import tqdm

    tqdm.write(f"warning: {sentence}", file=sys.stderr)


def _tell_stopped(run: RunFolder, settings: TrainSettings) -> None:
    print(
        f"stopped after {run.saved_step()} of {settings.steps} steps, saved in {run.folder}; the "
        "same command goes on",
        file=sys.stderr,
    )


def _settings(a: argparse.Namespace) -> TrainSettings:
    return TrainSettings(
        **{name: getattr(a, name) for name in NUMBERS},
        hops=tuple(int(hop) for hop in a.hops.split(",")),
        init=a.init,
        semantics=a.semantics,
        train_head=not a.without_head,
        retrieval=not a.without_retrieval,
    )


def _load_base(a: argparse.Namespace) -> tuple[Checkpoint, Place]:
    """The base as files have it, not packed for drawing: gradients go through it."""
    import torch

    from ..api import choose_device
    from ..checkpoints import load_checkpoint, resolve_dtype, resolve_storage
    from ..train import Place

    if resolve_storage(a.dtype) is not None:
        raise InputError(f"training with --dtype {a.dtype} is not possible; choose bf16 or fp32")
    device = choose_device(a.device, "--device")
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    dtype = resolve_dtype(a.dtype, device)
    if dtype == torch.float16:
        if a.dtype != "auto":
            raise InputError("training in fp16 loses small gradients; choose bf16 or fp32")
        dtype = torch.float32
    with progress_bar("tensor") as bar:
        path = shipped.resolve(a.model, shipped.MODELS)
        base = load_checkpoint(path, dtype, progress=follow(bar))
    base.model.to(device)
    autocast = dtype == torch.bfloat16
    return base, Place(device, autocast, getattr(a, "checkpointing", False))


def _examples(
    a: argparse.Namespace,
    base: Checkpoint,
    index: PatchIndex | None,
    settings: TrainSettings,
    run: RunFolder,
    team: Team,
) -> Examples:
    """Prepared by the leading process, once for a run; the others read what it wrote."""
    from ..checkpoints.adapter import index_fingerprint

    if team.leads:
        values = asdict(settings)
        if not settings.rehearse:
            del values["rehearse_pictures"]
        facts = values | {
            "model": base.fingerprint,
            "index": index_fingerprint(index) if index else "",
            "pictures": _stamp(a.images),
            "dtype": str(base.model.dtype).removeprefix("torch."),
            "processes": team.size,
        }
        facts = json.loads(json.dumps(facts))
        run.check(facts, BEFORE_REHEARSAL)
        if not run.examples.is_file():
            examples = _prepared(a, base, index, settings.looked_up)
            examples.split(settings.held_out)
            run.begin(facts, BEFORE_REHEARSAL)  # pictures that cannot be used leave nothing behind
            run.save_examples(examples)
    team.wait()
    return run.load_examples()


def _own(
    base: Checkpoint,
    index: PatchIndex | None,
    examples: Examples,
    settings: TrainSettings,
    run: RunFolder,
    place: Place,
    team: Team,
) -> Examples | None:
    """Pictures drawn by the base, in the leading process; the others read them."""
    from ..train import draw_own

    if team.leads:
        with progress_bar("caption") as bar:
            own = draw_own(base, index, examples.captions, settings, run, place.device, follow(bar))
        if own is None and settings.rehearse:
            _tell(
                f"the captions name everything that the model could draw itself, so "
                f"--rehearse {settings.rehearse:g} has no pictures to protect what it knows"
            )
    team.wait()
    return run.load_own()


class Pace:
    """Suggests fewer steps where pictures are few, once the time of an update is measured.

    Args:
        pictures: To train on.
        rehearsing: Whether the model's own pictures have a share of each update.
    """

    TIMED = 3
    """Updates that are timed, after a first one that is slower."""

    def __init__(
        self, settings: TrainSettings, pictures: int, team: Team, rehearsing: bool
    ) -> None:
        self.settings, self.pictures, self.team = settings, pictures, team
        self.rehearsing = rehearsing
        self.updates, self.started = 0, 0.0

    def tick(self, done: int) -> None:
        """Call after every update."""
        self.updates += 1
        if self.updates == 1:
            self.started = time.perf_counter()
        if done == self.updates == 1 + self.TIMED and self.team.leads:
            from ..train import suggest_steps

            seconds = (time.perf_counter() - self.started) / self.TIMED
            sentence = suggest_steps(
                self.settings, self.pictures, self.team.size, seconds, self.rehearsing
            )
            if sentence:
                _tell(sentence)


def _prepared(
    a: argparse.Namespace, base: Checkpoint, index: PatchIndex | None, k: int
) -> Examples:
    from ..train import prepare_examples

    with progress_bar("picture") as encoding, progress_bar("search") as searching:
        examples = prepare_examples(
            base.model, a.images, index, k, follow(encoding), follow(searching)
        )
    for line in examples.skipped:
        print(f"skipped {line}", file=sys.stderr)
    for note in examples.notes:
        print(f"note: {note}", file=sys.stderr)
    return examples


def _stamp(places: list[Path]) -> str:
    """Changes when one of the files, or a file of the folders, does."""
    digest = hashlib.sha256()
    for place in places:
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            if path.is_file():
                name, stat = path.relative_to(place).as_posix(), path.stat()
                line = f"{name}|{stat.st_size}|{stat.st_mtime_ns}\n"
                digest.update(line.encode(errors="replace"))
    return digest.hexdigest()[:16]


def _follow_loss(bar: Any) -> Any:
    tick = follow(bar)

    def report(done: int, total: int, bits: float) -> None:
        bar.set_postfix_str(f"{bits:.3f} bits a token", refresh=False)
        tick(done, total)

    return report


def _export(
    a: argparse.Namespace,
    base: Checkpoint,
    adapter: FaidAdapter,
    index: PatchIndex | None,
    settings: TrainSettings,
    run: RunFolder,
) -> None:
    from ..checkpoints import DTYPES
    from ..checkpoints.adapter import AdapterInfo, index_fingerprint, save_adapter
    from ..checkpoints.merge import merge_adapter

    results = run.results()
    info = AdapterInfo(
        adapter.config,
        base.name,
        base.fingerprint,
        base.model.hidden_size,
        Path(a.index).stem if a.index else "",
        index_fingerprint(index) if index else "",
        asdict(settings) | {"results": results},
    )
    save_adapter(a.out, adapter, info, DTYPES[a.out_dtype])
    results_shown = [
        f"{name.replace('_', ' ')} {value:.3f}"
        for name, value in results.items()
        if name != "best_step"
    ]
    if "best_step" in results:
        results_shown.insert(0, f"the best after {results['best_step']:.0f}")
    print(", ".join([f"{a.out}: {settings.steps} steps", *results_shown]))
    if a.merged is not None:
        merge_adapter(shipped.resolve(a.model, shipped.MODELS), a.out, a.merged)
        print(a.merged)


def loss(a: argparse.Namespace) -> int:
    """Measure the loss of pictures under a model, alone or with an adapter."""
    if a.json:
        check_output(a.json, ".json")
    check_inputs(a)
    settings = TrainSettings(batch=a.batch)
    index = load_index(shipped.resolve(a.index, shipped.INDEXES)) if a.index else None
    check_adapter(a.adapter)
    from ..checkpoints.adapter import load_adapter
    from ..train import score

    base, place = _load_base(a)
    adapter = None
    if a.adapter is not None:
        path = shipped.resolve(a.adapter, shipped.ADAPTERS)
        adapter = load_adapter(path, base, base.model.dtype).to(place.device)
    examples = _prepared(a, base, index, settings.looked_up)
    bits = score(base, adapter, examples, settings, place, index).mean(axis=1)
    print(f"{bits.mean():.4f} bits a token over {len(bits)} pictures")
    if a.json:
        pictures = [
            {"caption": caption, "bits": round(float(value), 6)}
            for caption, value in zip(examples.captions, bits, strict=True)
        ]
        report = {"bits": float(bits.mean()), "pictures": pictures}
        write_text(a.json, json.dumps(report, ensure_ascii=False, indent=1))
    return 0


def merge(a: argparse.Namespace) -> int:
    """Write a base and its adapter as one whole model, in the published layout."""
    out = check_output(a.out, ".safetensors")
    check_inputs(a)
    from ..checkpoints.merge import merge_adapter

    with progress_bar("tensor") as bar:
        base = shipped.resolve(a.model, shipped.MODELS)
        merge_adapter(base, shipped.resolve(a.adapter, shipped.ADAPTERS), out, follow(bar))
    print(out)
    return 0
