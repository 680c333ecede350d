"""Pictures to an index file."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import InputError
from ..files import move_file
from ..index import KeySpec, PatchIndex, create_index, load_index, save_index
from ..index.keys import Keys
from ..index.manifest import describe, save_manifest, shard_name
from ..index.search import check_search, chosen
from ..locks import locked
from ..models.families import ImageModel
from .encoding import Encoded, Report, encode_all, join
from .listing import Picture, ReadSettings, list_folder, listing_state
from .parts import (
    PICTURES,
    Run,
    ShardOrder,
    encode_part,
    is_done,
    make_shard,
    read_parts,
    run_here,
    split,
)
from .reading import BATCH, prepare_file, prepare_image, read_ahead
from .staging import Staging, open_staging

MAX_CODES = 2**16
Progress = Callable[[str, int, int], None]
"""Called with what is counted ("picture" or "structure"), how much is done, and the whole."""


@dataclass(frozen=True)
class BuildOptions:
    """Settings of an index."""

    spec: KeySpec = field(default_factory=KeySpec)
    read: ReadSettings = field(default_factory=ReadSettings)
    structure: str = "auto"
    recall_target: float = 0.95

    def __post_init__(self) -> None:
        check_search(self.structure, self.recall_target)
        if self.structure == "compact" and self.spec.space != "codebook":
            raise InputError(
                f"a compact structure needs keys of the codebook key space, not {self.spec.space}; "
                "choose another structure or key space"
            )


@dataclass(frozen=True)
class Built:
    """An index, as read from its file, and a report on the pictures."""

    index: PatchIndex
    report: Report


def build_index(
    model: ImageModel,
    folder: Path,
    out: Path,
    options: BuildOptions | None = None,
    device: torch.device | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], object] | None = None,
) -> Built:
    """Encode every picture under `folder`, make an index of them and write it to `out`.

    The same call resumes a build that was stopped or killed. The file is the same, byte for byte.

    Args:
        device: Where to compute; the model's own when absent.
        fresh: Start from the beginning, whatever an earlier build left.
        say: Called with a sentence when a build is resumed, or cannot be.

    Raises:
        InputError: No folder, no readable picture in it, another program that writes `out`, a
            folder that disappears, a disk that is full; no place of the model's grid has a key.
    """
    options, device = options or BuildOptions(), device or model.device
    out, progress = Path(out), progress or _ignore
    _check_codes(model)
    options.spec.check_grid(model.config.grid)
    pictures, notes = list_folder(folder, options.read)
    keep = options.spec.space == "encoder"
    dim = model.config.vq.codebook_dim if keep else None
    identity = _identity(model, pictures, options)
    with open_staging(out, model.config.grid.size, dim, identity, fresh, say or _ignore) as staging:
        done = staging.report.listed
        tick = _counting(progress, len(pictures))
        tick(done)
        prepare = partial(prepare_file, frame=model.frame, crops=options.read.crops)
        batches = read_ahead(folder, pictures, prepare, done)
        for part in encode_all(model, batches, staging.seen, keep, device, tick, done):
            staging.append(part)
        report = _finish(staging, model, device, folder, out, options, notes, progress)
    return Built(load_index(out), report)


def _finish(
    staging: Staging,
    model: ImageModel,
    device: torch.device,
    folder: Path,
    out: Path,
    options: BuildOptions,
    notes: list[str],
    progress: Progress,
) -> Report:
    """Make the index of everything that is staged."""
    _check_found(folder, staging.report)
    staging.report.notes += notes
    index = _make(model, device, staging.all(), options, progress)
    with staging.output(out) as path:
        save_index(index, path)
    return staging.report


def build_in_parts(
    model: ImageModel,
    checkpoint: Path,
    folder: Path,
    out: Path,
    options: BuildOptions | None = None,
    shard_pictures: int = 0,
    run: Run = run_here,
    fresh: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], object] | None = None,
) -> Report:
    """Encode the pictures under `folder` in parts, and make one index file of them, the same byte
    for byte as `build_index` does on a CPU, or an index in shards.

    Parts are in the folder `.NAME.parts` beside the output until that is complete; the same call
    after an interruption makes only those that are missing.

    Args:
        checkpoint: Where the model is, for whoever encodes.
        out: An index file, or with `shard_pictures` a manifest (.json), with the shards beside it.
        shard_pictures: Pictures of a shard, rounded up to whole parts; 0 = one file.
        run: Encodes parts and makes shards; on a cluster, all paths must be the same on every
            machine.

    Raises:
        InputError: As `build_index`.
    """
    options, progress = options or BuildOptions(), progress or _ignore
    folder, out = Path(folder).absolute(), Path(out).absolute()
    _check_codes(model)
    options.spec.check_grid(model.config.grid)
    pictures, notes = list_folder(folder, options.read)
    identity = _identity(model, pictures, options)
    keep = options.spec.space == "encoder"
    place = out.parent / f".{out.name}.parts"
    with locked(place):
        _begin(place, fresh)
        parts = split(
            *(checkpoint.absolute(), folder, pictures, options.read.crops, keep, place, identity)
        )
        if done := sum(len(part.pictures) for part in parts if is_done(part)):
            (say or _ignore)(f"going on after {done} pictures that an earlier build has done")
        tick, count = _counting(progress, len(pictures)), 0
        for own in run(encode_part, [(part,) for part in parts], True):
            count += own
            tick(count)
        paths = [part.path for part in parts]
        if shard_pictures:
            report, kept = _kept_rows(paths, folder)
            spans = _spans(kept, -(-shard_pictures // PICTURES))
            made = place / _digest(identity, options, shard_pictures)
            made.mkdir(exist_ok=True)
            files = _shard_files(out, made, len(spans), fresh)
            orders = [(order,) for order in _orders(model, options, spans, files)]
            for number, _ in enumerate(run(make_shard, orders, False), start=1):
                progress("shard", number, len(orders))
            report.notes += notes + _publish(files, out)
        else:
            report = _join_parts(model, paths, folder, out, options, identity, notes, progress)
        shutil.rmtree(place)
    return report


def _begin(place: Path, fresh: bool) -> None:
    """The folder for parts, empty if an earlier build is to be ignored.

    Raises:
        InputError: It cannot be made.
    """
    try:
        if fresh:
            shutil.rmtree(place, ignore_errors=True)
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write to {place}: {error.strerror}; choose another folder"
        ) from error


def _join_parts(
    model: ImageModel,
    paths: Sequence[Path],
    folder: Path,
    out: Path,
    options: BuildOptions,
    identity: dict[str, str],
    notes: list[str],
    progress: Progress,
) -> Report:
    """One index file of parts."""
    dim = model.config.vq.codebook_dim if options.spec.space == "encoder" else None
    with open_staging(out, model.config.grid.size, dim, identity, True, _ignore) as staging:
        for _, encoded in read_parts(paths, dict(staging.seen)):
            staging.append(encoded)
        return _finish(staging, model, model.device, folder, out, options, notes, progress)


Rows = tuple[tuple[Path, np.ndarray], ...]
"""Parts, and the rows of each that are kept."""


def _kept_rows(paths: Sequence[Path], folder: Path) -> tuple[Report, Rows]:
    """What a build of all parts adds and leaves out, and what it keeps of each."""
    report, seen = Report(), dict[str, str]()
    kept: list[tuple[Path, np.ndarray]] = []
    for path, (rows, encoded) in zip(paths, read_parts(paths, seen), strict=True):
        report.add(encoded.report)
        kept.append((path, rows))
    _check_found(folder, report)
    return report, tuple(kept)


def _spans(kept: Rows, step: int) -> list[Rows]:
    """The parts of each shard, `step` of them; none without a picture."""
    spans = [kept[i : i + step] for i in range(0, len(kept), step)]
    return [span for span in spans if any(len(rows) for _, rows in span)]


def _shard_files(out: Path, made: Path, count: int, fresh: bool) -> list[Path]:
    """Where the shards are until all are made: in the folder `made`, or beside `out` after a build
    that was killed when it put them there."""
    names = [shard_name(out, number, made.name) for number in range(count)]
    moved = [not fresh and not (made / n).exists() and (out.parent / n).exists() for n in names]
    return [(out.parent if m else made) / n for n, m in zip(names, moved, strict=True)]


def _orders(
    model: ImageModel, options: BuildOptions, spans: Sequence[Rows], files: Sequence[Path]
) -> list[ShardOrder]:
    """Shards with one kind of search structure, that of the first."""
    grid, spec, target = model.config.grid, options.spec, options.recall_target
    codebook = model.vq.codebook(model.device)
    none = Keys(np.empty((0, grid.size), np.uint16), None, codebook, grid, spec)
    size = sum(len(rows) for _, rows in spans[0]) * len(spec.active(grid))
    structure = chosen(options.structure, none, size, target)
    return [
        ShardOrder(span, codebook, grid, spec, structure, target, file)
        for span, file in zip(spans, files, strict=True)
    ]


def _publish(files: Sequence[Path], out: Path) -> list[str]:
    """Put finished shards beside their manifest at `out`, which is written last: until then, an
    index that was there is as it was. Returns remarks.

    Raises:
        InputError: A file cannot be read or written.
    """
    shard = re.compile(rf"{re.escape(out.stem)}-([0-9a-f]{{8}}-)?\d{{5}}\.safetensors")
    old = {path.name for path in out.parent.iterdir() if shard.fullmatch(path.name)}
    manifest = describe(out, files)
    for file in files:
        move_file(file, out.parent / file.name)
    save_manifest(manifest)
    left = sorted(old - {file.name for file in files})
    return [f"{name} is no shard of {out.name} now, and was left where it is" for name in left]


def _digest(identity: Mapping[str, str], options: BuildOptions, shard_pictures: int) -> str:
    """Tells the shards of one build from those of another one."""
    search = asdict(options.spec), options.structure, options.recall_target
    facts = [dict(identity), *search, shard_pictures]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def encode_folder(
    model: ImageModel,
    folder: Path,
    read: ReadSettings | None = None,
    known: Mapping[str, str] | None = None,
    keep_vectors: bool = True,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Encoded:
    """Encode every picture under `folder` in memory, to be added to an index.

    Args:
        known: Names by sha256 of pictures that are not wanted again.

    Raises:
        InputError: No folder, or it disappears.
    """
    _check_codes(model)
    read = read or ReadSettings()
    pictures, notes = list_folder(folder, read)
    prepare = partial(prepare_file, frame=model.frame, crops=read.crops)
    batches = read_ahead(folder, pictures, prepare)
    report = progress or _ignore
    tick = _counting(lambda _, done, total: report(done, total), len(pictures))
    seen = dict(known or {})
    parts = encode_all(model, batches, seen, keep_vectors, device or model.device, tick)
    encoded = join(parts, model, keep_vectors)
    encoded.report.notes += notes
    return encoded


def build_from_images(
    model: ImageModel,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    out: Path,
    options: BuildOptions | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> Built:
    """Make an index of RGB pictures in memory and write it to `out`.

    Args:
        captions: One for each picture, or none at all.

    Raises:
        InputError: Another number of captions, `out` cannot be written or another program writes
            it; no place of the model's grid has a key.
    """
    options, device = options or BuildOptions(), device or model.device
    progress = progress or _ignore
    _check_codes(model)
    options.spec.check_grid(model.config.grid)
    if captions and len(captions) != len(images):
        raise InputError(
            f"there are {len(captions)} captions for {len(images)} pictures; give one for each, "
            "or none"
        )
    with locked(Path(out)):
        return _build_batch(model, images, captions, Path(out), options, device, progress)


def _build_batch(
    model: ImageModel,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    out: Path,
    options: BuildOptions,
    device: torch.device,
    progress: Progress,
) -> Built:
    keep, read = options.spec.space == "encoder", options.read
    prepared = []
    for i, image in enumerate(images):
        caption = captions[i].strip() if captions else ""
        facts = Picture("", f"picture {i + 1}", caption, read.licence, read.origin)
        prepared.append(prepare_image(image, facts, model.frame, read.crops))
    batches = [prepared[i : i + BATCH] for i in range(0, len(prepared), BATCH)]
    parts = encode_all(model, batches, {}, keep, device, _counting(progress, len(images)))
    encoded = join(parts, model, keep)
    _check_found("the batch", encoded.report)
    save_index(_make(model, device, encoded, options, progress), out)
    return Built(load_index(out), encoded.report)


def _counting(progress: Progress, total: int) -> Callable[[int], object]:
    return lambda done: progress("picture", done, total)


def _make(
    model: ImageModel,
    device: torch.device,
    encoded: Encoded,
    options: BuildOptions,
    progress: Progress,
) -> PatchIndex:
    return create_index(
        model.config.grid,
        encoded.tokens,
        encoded.vectors,
        model.vq.codebook(device),
        encoded.sources,
        options.spec,
        options.structure,
        options.recall_target,
        partial(progress, "structure"),
    )


def _check_codes(model: ImageModel) -> None:
    if model.config.vq.codebook_size > MAX_CODES:
        raise InputError(
            f"the model has {model.config.vq.codebook_size} codes, an index holds {MAX_CODES}"
        )


def _check_found(place: str | Path, report: Report) -> None:
    if not report.pictures:
        reasons = "".join(f"; {name}: {why}" for name, why in report.unreadable[:3])
        raise InputError(f"{place} holds no readable picture{reasons}; choose another folder")


def _identity(model: ImageModel, pictures: list[Picture], options: BuildOptions) -> dict[str, str]:
    """Facts that two builds must share for one to resume the other."""
    encoder = hashlib.sha256()
    for name, weight in sorted(model.vq.state_dict().items()):
        if not name.startswith(("decoder.", "post_quant_conv.")):
            encoder.update(name.encode() + weight.detach().float().cpu().numpy().tobytes())
    return {
        "the way builds are kept": "1",
        "the model": encoder.hexdigest(),
        "the grid": str(model.config.grid),
        "the crops": options.read.crops,
        "the key space": options.spec.space,
        "the list of pictures": listing_state(pictures),
    }


def _ignore(*_: object) -> None:
    pass
