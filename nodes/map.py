"""Retrieval Map."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..arrag_engine.bounds import COPY_LIMIT, OPACITY
from ..arrag_engine.decode import Drawing, Trace
from ..arrag_engine.errors import InputError
from ..arrag_engine.images import from_floats, to_floats
from ..arrag_engine.paths import cannot
from ..arrag_engine.report import (
    Report,
    heat_map,
    influence,
    make_report,
    make_view,
    source_sheet,
)
from .inputs import checked
from .newer import found_by
from .progress import watched
from .types import CATEGORY
from .types import Trace as TraceLink

LARGER_THAN = 16
OPAQUE = 0.6
LARGEST = 1024
"""Pixels of a side of the picture in the view."""


class RetrievalMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ARRAG_RetrievalMap",
            display_name="Retrieval Map",
            category=CATEGORY,
            description="Shows where in a picture retrieval worked, which pictures of the indexes "
            "it took patches from, and how much was copied. The view in the node shows every patch "
            "with its candidates.",
            **found_by("trace", "heat map", "over-copying", "sources"),
            is_output_node=True,
            inputs=[
                TraceLink.Input("trace", tooltip="From the DAiD Sampler or the FAiD Sampler."),
                io.Image.Input(
                    "image",
                    tooltip="The pictures of the same sampler, of any size: as drawn, or enlarged.",
                ),
                io.Int.Input(
                    "larger_than",
                    default=LARGER_THAN,
                    min=COPY_LIMIT.low,
                    max=COPY_LIMIT.high,
                    tooltip="Copied regions of more tokens count for the over-copying score. A "
                    "copied region is a connected part of the picture whose tokens equal those of "
                    "one source in the same arrangement.",
                ),
                io.Float.Input(
                    "opacity",
                    default=OPAQUE,
                    min=OPACITY.low,
                    max=OPACITY.high,
                    step=0.05,
                    tooltip="Of the heat map over the picture. 0 = the picture alone.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "IMAGE",
                    display_name="map",
                    tooltip="The picture under a heat map of the influence of retrieval.",
                ),
                io.Mask.Output(
                    "MASK",
                    display_name="influence",
                    tooltip="How much of each patch is owed to retrieval, in the size of the "
                    "picture.",
                ),
                io.String.Output(
                    "TABLE",
                    display_name="table",
                    tooltip="Shares, copied regions and licences by source.",
                ),
                io.Float.Output(
                    "SCORE",
                    display_name="score",
                    tooltip="Over-copying score: the share of the picture in copied regions; the "
                    "mean of a batch.",
                ),
                io.Image.Output(
                    "SHEET",
                    display_name="sources",
                    tooltip="Thumbnails of the sources with the largest shares.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, trace: Drawing, image: Tensor, larger_than: int, opacity: float
    ) -> io.NodeOutput:
        COPY_LIMIT.check(larger_than, "larger_than")
        OPACITY.check(opacity)
        check_pictures(trace, image)
        pictures = [from_floats(one) for one in image]
        reports: list[Report] = []
        shown: list[dict[str, str]] = []
        for one, picture in zip(watched(trace.traces), pictures, strict=True):
            reports.append(make_report(one, larger_than, picture))
            shown.append(save_view(one, reports[-1], picture))
        pairs = list(zip(pictures, map(influence, trace.traces), strict=True))
        return io.NodeOutput(
            to_floats([heat_map(picture, shares, opacity) for picture, shares in pairs]),
            torch.cat([mask_of(torch.from_numpy(shares), picture) for picture, shares in pairs]),
            table(reports),
            sum(report.score for report in reports) / len(reports),
            to_floats([source_sheet(report) for report in reports]),
            ui={"arrag_map": shown},
        )


def check_pictures(trace: Drawing, image: Tensor) -> None:
    """Refuse pictures that the trace cannot be of.

    Raises:
        InputError: Another number of them.
    """
    if len(image) != len(trace.tokens):
        raise InputError(
            f"the trace is of {len(trace.tokens)} pictures and image has {len(image)}; connect the "
            "image of the sampler that the trace comes from"
        )


def mask_of(shares: Tensor, picture: Image.Image) -> Tensor:
    """[1, H, W] float32 of shares [height, width], each cell of one value."""
    size = (picture.height, picture.width)
    return torch.nn.functional.interpolate(shares[None, None].float(), size)[0]


def table(reports: list[Report]) -> str:
    """The texts of a batch, one after the other."""
    texts = [report.text() for report in reports]
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"Picture {i}\n{text}" for i, text in enumerate(texts, start=1))


def save_view(trace: Trace, report: Report, picture: Image.Image) -> dict[str, str]:
    """Write what the view shows of a picture to ComfyUI's folder of temporary files; the names of
    the files there.

    Raises:
        InputError: They cannot be written.
    """
    view, small = make_view(trace, report), picture.copy()
    small.thumbnail((LARGEST, LARGEST))
    name = f"arrag_map_{secrets.token_hex(8)}"
    folder = folder_paths.get_temp_directory()
    files = {"data": f"{name}.json", "picture": f"{name}.png", "thumbnails": f"{name}_sources.png"}
    place = {kind: os.path.join(folder, file) for kind, file in files.items()}
    try:
        os.makedirs(folder, exist_ok=True)
        small.save(place["picture"])
        view.thumbnails.save(place["thumbnails"])
        with open(place["data"], "w", encoding="ascii") as file:
            json.dump(view.data, file)
    except OSError as error:
        raise cannot("write", Path(folder), error) from error
    return files
