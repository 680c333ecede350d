"""One run of the kit, from the checkpoint to the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...checkpoints import Checkpoint
from ...files import write_text
from ...grid import NEIGHBORHOODS
from ...images import save_png
from ..benchmark import Progress
from ..journal import Journal
from ..listed import Way
from ..pictures import decode_tokens
from .checks import check_checkpoint, thumbnail
from .effort import PROMPTS, Effort
from .material import Material, make_material, usable_caption
from .pace import Load, accepted_tokens, measure_pace, release
from .page import make_page
from .recommend import entry, recommend, to_facts
from .settings import (
    Drawn,
    best_of,
    draw_variants,
    drawing_table,
    layer_of,
    measure_bits,
    variants,
)

JSON, PAGE, SHEET = "kit.json", "kit.html", "sheet.png"


def run_kit(
    load: Load,
    dtypes: Sequence[str],
    images: Path,
    out: Path,
    effort: Effort,
    known: Mapping[str, Any],
    journal: Journal,
    progress: Progress,
    searched_on: Callable[[Checkpoint], Any],
) -> dict[str, Any]:
    """Measure what is not measured yet, and write JSON, page and sheet into a folder.

    Args:
        load: Loads the model in a dtype; the first of `dtypes` is the one that draws.
        known: Facts for the JSON: versions, device.
        searched_on: Says where indexes are searched for a model.

    Returns:
        What the JSON has.
    """
    pace = measure_pace(load, dtypes, PROMPTS[0], effort, journal, progress)
    release()
    checkpoint = load(dtypes[0])
    material = make_material(checkpoint, images, out, effort, journal, progress)
    prompts = prompts_of(checkpoint, material, effort)
    bits = measure_bits(checkpoint, material, effort, journal, progress)
    index, best = material.index, best_of(bits)
    way = Way(checkpoint, [layer_of(checkpoint, index, best)], place=searched_on(checkpoint))
    accepted = accepted_tokens(way, prompts, effort, journal, progress)
    compared = [row["neighborhood"] for row in bits[1:]]
    wanted = variants(best, effort, sorted(set(compared), key=neighbourhood_size))
    drawn = draw_variants(way, index, wanted, prompts, journal, progress)
    found = recommend(checkpoint, bits)
    facts = {
        "kit": 1,
        "model": model_facts(checkpoint),
        **known,
        "pictures": {
            "index": len(index.tokens),
            "captioned": material.captioned,
            "held_out": len(material.held_out),
        },
        "checks": check_checkpoint(checkpoint, material, drawn[0].tokens),
        "recommended": None if found is None else to_facts(found),
        "entry": None if found is None else entry(checkpoint.fingerprint, to_facts(found)),
        "bits": bits,
        "drawings": drawing_table(drawn, index),
        "accepted": accepted,
        "pace": pace,
    }
    write(out, facts, material, drawn, checkpoint)
    return facts


def neighbourhood_size(name: str) -> int:
    """Positions that its keys see."""
    return len(NEIGHBORHOODS[name])


def model_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "name": checkpoint.name,
        "weights": checkpoint.fingerprint,
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
        "order": checkpoint.model.order.name,
    }


def prompts_of(checkpoint: Checkpoint, material: Material, effort: Effort) -> list[str]:
    """Captions of held-out pictures, as far as there are usable ones, then prompts of the kit."""
    captions = [usable_caption(checkpoint, picture.caption) for picture in material.held_out]
    every = [caption for caption in captions if caption] + list(PROMPTS)
    return list(dict.fromkeys(every))[: effort.prompts]


def write(
    out: Path,
    facts: Mapping[str, Any],
    material: Material,
    drawn: Sequence[Drawn],
    checkpoint: Checkpoint,
) -> None:
    """The JSON has no names of files and no captions; the page shows both."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for one in drawn:
        picture = thumbnail(checkpoint, one.tokens)
        rows.setdefault(one.prompt, []).append((one.label, picture))
    page = make_page({**facts, "unreadable": material.unreadable}, list(rows.items()))
    write_text(out / JSON, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    write_text(out / PAGE, page)
    columns = len(drawn) // len(rows)
    save_png(sheet(checkpoint, [one.tokens for one in drawn], columns), out / SHEET, {})


def sheet(checkpoint: Checkpoint, drawn: Sequence[np.ndarray], columns: int) -> Image.Image:
    """All drawings: a row for each prompt, a column for each variant."""
    pictures = [Image.fromarray(decode_tokens(checkpoint, one[None])[0]) for one in drawn]
    width, height = pictures[0].size
    whole = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for place, picture in enumerate(pictures):
        whole.paste(picture, (place % columns * width, place // columns * height))
    return whole
