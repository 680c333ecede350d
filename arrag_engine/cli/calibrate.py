"""`calibrate`: when to trust an index."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import shipped
from ..bounds import (
    CEILING,
    HARM_SHARE,
    LIMIT,
    NEIGHBOURS,
    RETRIEVAL_TEMPERATURE,
    RETRIEVAL_TOP_P,
)
from ..errors import InputError
from ..evaluate.benchmark import evenly
from ..index import SourceTable, load_index, save_index
from ..locks import locked
from ..paths import check_folder, check_output, given_name
from ..settings import DUPLICATES, HARM, RetrievalOptions
from .build import print_report
from .parser import number
from .progress import follow, progress_bar
from .shared import Command, add_model_flags, check_inputs, load_model

if TYPE_CHECKING:
    from ..calibrate import Observations
    from ..checkpoints import Checkpoint
    from ..retrieval import Retriever


def add_commands(command: Command) -> None:
    parser = command(calibrate)
    add_model_flags(parser)
    add, options = parser.add_argument, RetrievalOptions()
    add(
        "--index",
        required=True,
        check=given_name,
        help="index to calibrate: path or shipped name (pocket)",
    )
    add("--images", required=True, type=Path, help="folder of pictures that are not in the index")
    add(
        "--known",
        type=Path,
        help="folder of captioned pictures like those that the model draws well alone, which must "
        "not suffer (default: the model draws some)",
    )
    add(
        "--harm",
        **number(HARM_SHARE),
        default=HARM,
        help="share of the known pictures' tokens to spoil at most",
    )
    add("--out", required=True, type=Path, help="index file to write (.safetensors)")
    add(
        "--retrieval-temperature",
        **number(RETRIEVAL_TEMPERATURE),
        default=options.temperature,
        help="τ: a lower one prefers nearer patches",
    )
    add(
        "--neighbours",
        **number(NEIGHBOURS),
        default=options.neighbours,
        help="K patches per query",
    )
    add(
        "--duplicates",
        choices=DUPLICATES,
        default=options.duplicates,
        help="neighbours with one code: the first counts, or the sum",
    )
    add(
        "--retrieval-top-p",
        **number(RETRIEVAL_TOP_P),
        default=options.top_p,
        help="top-p of the proposals",
    )
    add("--ceiling", **number(CEILING), default=1.0, help="largest weight λ, more than 0 to 1")
    add("--limit", **number(LIMIT), help="use so many pictures, evenly taken (default: all)")


def calibrate(a: argparse.Namespace) -> int:
    """Fit the weight "auto" of an index to a model, on pictures that the index lacks."""
    out = check_output(a.out, ".safetensors")
    options = RetrievalOptions(
        0.1, a.retrieval_temperature, a.neighbours, a.duplicates, a.retrieval_top_p
    )
    check_inputs(a)
    if a.known is not None:
        check_folder(a.known)
    with locked(out):
        return _calibrate(a, out, options)


def _calibrate(a: argparse.Namespace, out: Path, options: RetrievalOptions) -> int:
    index = load_index(shipped.resolve(a.index, shipped.INDEXES))
    from ..calibrate import fit
    from ..retrieval import make_retriever

    checkpoint = load_model(a)
    model = checkpoint.model
    retriever = make_retriever(index, model.config.grid, model.vq.codebook(model.device))
    seen = _observed(a.images, checkpoint, retriever, options, a.limit)
    if a.known is None:
        known = _observed_own(checkpoint, retriever, options)
    else:
        known = _observed(a.known, checkpoint, retriever, options, a.limit)
    found = fit(seen, options, a.ceiling, known, a.harm)
    save_index(replace(index, calibration=found.calibration), out)
    print(
        f"{len(seen.p_model)} positions: bits per token {found.bits_model:.3f} without retrieval, "
        f"{found.bits_fixed:.3f} with weight {found.best_fixed:.2f} everywhere, "
        f"{found.bits_auto:.3f} with auto, which uses retrieval at {found.heard:.0%} of them"
    )
    print(
        f"what the model knows: {found.known_model:.3f} without retrieval, "
        f"{found.known_auto:.3f} with auto, which spoils a share of {found.spoiled:.5f} of its "
        "tokens"
    )
    print(out)
    return 0


def _observed_own(
    checkpoint: Checkpoint, retriever: Retriever, options: RetrievalOptions
) -> Observations:
    """What retrieval finds for pictures that the model draws by itself."""
    from ..calibrate import OWN_PICTURES, observe, own_pictures

    print(
        f"{checkpoint.name} draws {OWN_PICTURES} pictures by itself; they count as known",
        flush=True,
    )
    model, encoder = checkpoint.janus, checkpoint.janus_encoder
    pictures = own_pictures(model, encoder, checkpoint.sampling, OWN_PICTURES)
    with progress_bar("picture") as bar:
        bar.total = OWN_PICTURES
        return observe(model, encoder, retriever, pictures, options, bar.update)


def _observed(
    folder: Path,
    checkpoint: Checkpoint,
    retriever: Retriever,
    options: RetrievalOptions,
    limit: int | None,
) -> Observations:
    """What retrieval finds for the pictures of a folder that the index lacks."""
    from ..build import encode_folder
    from ..calibrate import observe

    model = checkpoint.janus
    with progress_bar("picture") as bar:
        sources = retriever.source.sources
        assert isinstance(sources, SourceTable)  # load_index reads no other
        known = sources.names_by_hash()
        encoded = encode_folder(model, folder, None, known, False, progress=follow(bar))
    print_report(replace(encoded.report, duplicates=[]))  # it is right that the index has some
    pictures = [(t, s.caption) for t, s in zip(encoded.tokens, encoded.sources, strict=True)]
    if not pictures:
        raise InputError(f"{folder} holds no readable picture that the index lacks; use others")
    pictures = evenly(pictures, limit)
    with progress_bar("picture") as bar:
        bar.total = len(pictures)
        encoder = checkpoint.janus_encoder
        return observe(model, encoder, retriever, pictures, options, bar.update)
