"""Retrieval Options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..arrag_engine.bounds import (
    COPY_LIMIT,
    END,
    MAX_DISTANCE,
    NEIGHBOURS,
    RETRIEVAL_TEMPERATURE,
    RETRIEVAL_TOP_P,
    START,
    WEIGHT,
    check_choice,
)
from ..arrag_engine.errors import InputError
from ..arrag_engine.layers import Layer
from ..arrag_engine.retrieval import Steering, row_weights
from ..arrag_engine.settings import BORDER_KEYS, CURVES, DISTANCES, DUPLICATES, RECOMMENDED
from .inputs import checked, chosen
from .newer import ADVANCED, found_by
from .types import CATEGORY, RECOMMENDED_NUMBER, Index, IndexChoice, Retrieval

RECOMMENDED_NEIGHBORS = 0
FIXED, CALIBRATED = "these settings", "the index's calibration"
"""Where the settings come from."""


class RetrievalOptionsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ARRAG_RetrievalOptions",
            display_name="Retrieval Options",
            category=CATEGORY,
            description="Settings of retrieval: the index, its weight λ, and how neighbours become "
            "a distribution.",
            **found_by("lambda", "weight", "neighbors"),
            inputs=[
                Index.Input("index", tooltip="The index to retrieve patches from."),
                io.Float.Input(
                    "weight",
                    default=RECOMMENDED_NUMBER,
                    min=RECOMMENDED_NUMBER,
                    max=WEIGHT.high,
                    step=0.01,
                    tooltip="λ: the share of the next token's distribution that comes from the "
                    "retrieved patches. 0 = the model alone, -1 = recommended.",
                ),
                io.Float.Input(
                    "temperature",
                    default=RECOMMENDED_NUMBER,
                    min=RECOMMENDED_NUMBER,
                    max=RETRIEVAL_TEMPERATURE.high,
                    step=0.01,
                    tooltip="τ: a low value prefers the nearest patches and copies more, a high "
                    "value weights all neighbours alike. -1 = recommended.",
                ),
                io.Int.Input(
                    "neighbours",
                    default=RECOMMENDED_NEIGHBORS,
                    min=RECOMMENDED_NEIGHBORS,
                    max=NEIGHBOURS.high,
                    tooltip="K: number of patches that each query returns. Values above the size "
                    "of the index return all patches. 0 = recommended.",
                ),
                io.Combo.Input(
                    "settings_from",
                    options=[FIXED, CALIBRATED],
                    default=FIXED,
                    optional=True,
                    tooltip="these settings: the values of this node. the index's calibration: a "
                    "weight for each position, high where neighbours are near and agree and the "
                    "prompt has words that the model does not know; weight, temperature, "
                    "neighbours, duplicates and top_p are ignored. Only for calibrated indexes.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "duplicates",
                    options=[*DUPLICATES, RECOMMENDED],
                    default=RECOMMENDED,
                    optional=True,
                    tooltip="Neighbours that propose the same token. first: only the nearest of "
                    "them counts. sum: their weights add up, so that frequent tokens weigh more.",
                    **ADVANCED,
                ),
                io.Float.Input(
                    "top_p",
                    default=RECOMMENDED_NUMBER,
                    min=RECOMMENDED_NUMBER,
                    max=RETRIEVAL_TOP_P.high,
                    step=0.01,
                    optional=True,
                    tooltip="Keeps only the most probable proposals up to this total probability. "
                    "1 = all, -1 = recommended.",
                    **ADVANCED,
                ),
                *steering_inputs(),
                *any_order_inputs(),
            ],
            outputs=[Retrieval.Output("RETRIEVAL", display_name="retrieval")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        index: IndexChoice,
        weight: float,
        temperature: float,
        neighbours: int,
        settings_from: str = FIXED,
        duplicates: str = DUPLICATES[0],
        top_p: float = 1.0,
        retrieval: tuple[Layer, ...] | None = None,
        subject: str = "",
        include: str = "",
        exclude: str = "",
        border_keys: str = RECOMMENDED,
        distances: str = RECOMMENDED,
        **steering: Any,
    ) -> io.NodeOutput:
        check_choice("settings_from", settings_from, (FIXED, CALIBRATED))
        layer = Layer(
            index.index,
            subject.strip() or index.only,
            index.keys,
            include=include,
            exclude=exclude,
            steering=steering_of(**steering),
            border_keys=None if border_keys == RECOMMENDED else border_keys,  # type: ignore[arg-type]
            distances=None if distances == RECOMMENDED else distances,  # type: ignore[arg-type]
        )
        if settings_from == CALIBRATED:
            layer = replace(layer, weight="auto")
        else:
            layer = replace(
                layer,
                weight=chosen(WEIGHT, weight),
                temperature=chosen(RETRIEVAL_TEMPERATURE, temperature),
                neighbours=None if neighbours == RECOMMENDED_NEIGHBORS else neighbours,
                duplicates=None if duplicates == RECOMMENDED else duplicates,  # type: ignore[arg-type]
                top_p=chosen(RETRIEVAL_TOP_P, top_p),
            )
        return io.NodeOutput((*(retrieval or ()), layer))


def steering_inputs() -> list[io.Input]:
    """Where in the picture the index works, and which of its pictures; in the order workflows store
    them: only ever append."""
    return [
        Retrieval.Input(
            "retrieval",
            optional=True,
            tooltip="From another Retrieval Options: its indexes work in the same picture. The "
            "weights add up to 1 at most where they overlap; recommended ones are adapted.",
        ),
        io.String.Input(
            "subject",
            default="",
            optional=True,
            tooltip="Which pictures of the index are used here: a word, or a pattern, of captions, "
            "names or sources. Empty = as set in Load Patch Index.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="The part of the picture where this index works. Grey means a part of the "
            "weight. Resized to the grid of tokens.",
        ),
        io.Float.Input(
            "start",
            default=0.0,
            min=START.low,
            max=START.high,
            step=0.01,
            optional=True,
            tooltip="Share of the picture that is drawn when the index begins to work: from the "
            "top, or, for masked models, the share of the tokens that are known.",
            **ADVANCED,
        ),
        io.Float.Input(
            "end",
            default=1.0,
            min=END.low,
            max=END.high,
            step=0.01,
            optional=True,
            tooltip="Share of the picture at which it ends. Below start, the curve runs backwards: "
            "from the whole weight down to 0.",
            **ADVANCED,
        ),
        io.Combo.Input(
            "curve",
            options=list(CURVES),
            default=CURVES[0],
            optional=True,
            tooltip="The weight from start to end: constant; growing from 0 (linear, ease in: "
            "slowly at first, ease out: fast at first); rows: one factor for each row, below.",
            **ADVANCED,
        ),
        io.String.Input(
            "rows",
            default="",
            optional=True,
            tooltip="For the curve rows: factors of the weight from top to bottom, such as "
            "1 1 0.5 0. A short list is interpolated.",
            **ADVANCED,
        ),
        io.Float.Input(
            "max_distance",
            default=0.0,
            min=MAX_DISTANCE.low,
            max=MAX_DISTANCE.high,
            step=0.05,
            optional=True,
            tooltip="Patches at a larger distance are not used; where none is near enough, the "
            "model draws alone. 0 = no limit. Retrieval Map shows distances.",
            **ADVANCED,
        ),
        io.String.Input(
            "include",
            multiline=True,
            default="",
            optional=True,
            tooltip="Only these pictures of the index: patterns of captions, names or sources, one "
            "a line. =name means the picture of that name alone. Empty = all.",
            **ADVANCED,
        ),
        io.String.Input(
            "exclude",
            multiline=True,
            default="",
            optional=True,
            tooltip="Leaves these pictures of the index out, in the same way as include.",
            **ADVANCED,
        ),
        io.Int.Input(
            "copy_limit",
            default=0,
            min=COPY_LIMIT.low,
            max=COPY_LIMIT.high,
            optional=True,
            tooltip="Largest number of connected tokens that may be copied from one picture of the "
            "index in its own arrangement. 0 = no limit.",
            **ADVANCED,
        ),
    ]


def any_order_inputs() -> list[io.Input]:
    """Of models that draw in any order; only ever append."""
    return [
        io.Combo.Input(
            "border_keys",
            options=[*BORDER_KEYS, RECOMMENDED],
            default=RECOMMENDED,
            optional=True,
            tooltip="Only for masked models (Show-o). Patches at the border of their picture lack "
            "neighbours. out: a patch is found only where it has every neighbour that is known "
            "here. in: a missing one adds a fixed distance, so that border patches are found most.",
            **ADVANCED,
        ),
        io.Combo.Input(
            "distances",
            options=[*DISTANCES, RECOMMENDED],
            default=RECOMMENDED,
            optional=True,
            tooltip="Only for masked models (Show-o). sum: over the known neighbours, so that the "
            "temperature sharpens as more are known. mean: for each known neighbour.",
            **ADVANCED,
        ),
    ]


def steering_of(
    mask: Tensor | None = None, rows: str = "", curve: str = CURVES[0], **numbers: Any
) -> Steering:
    """The steering of a layer.

    Raises:
        InputError: A value cannot be used.
    """
    region = None
    if mask is not None:
        if mask.ndim == 3 and len(mask) > 1:
            raise InputError(
                f"the mask of Retrieval Options is a batch of {len(mask)}; connect a single mask, "
                "which holds for all pictures"
            )
        region = mask.reshape(mask.shape[-2:]).float().cpu().numpy()
    return Steering(region, curve=curve, rows=row_weights(rows), **numbers)  # type: ignore[arg-type]
