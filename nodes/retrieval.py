"""Retrieval Options."""

from __future__ import annotations

from comfy_api.latest import io

from ..arrag_engine.bounds import (
    NEIGHBOURS,
    RETRIEVAL_TEMPERATURE,
    RETRIEVAL_TOP_P,
    WEIGHT,
    check_choice,
)
from ..arrag_engine.session import RECOMMENDED, Layer
from ..arrag_engine.settings import DUPLICATES
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
                    "prompt has words that the model does not know; all other values of this node "
                    "are ignored. Only for calibrated indexes.",
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
    ) -> io.NodeOutput:
        check_choice("settings_from", settings_from, (FIXED, CALIBRATED))
        if settings_from == CALIBRATED:
            return io.NodeOutput(Layer(index.index, index.only, index.keys, "auto"))
        layer = Layer(
            index.index,
            index.only,
            index.keys,
            chosen(WEIGHT, weight),
            chosen(RETRIEVAL_TEMPERATURE, temperature),
            None if neighbours == RECOMMENDED_NEIGHBORS else neighbours,
            None if duplicates == RECOMMENDED else duplicates,  # type: ignore[arg-type]
            chosen(RETRIEVAL_TOP_P, top_p),
        )
        return io.NodeOutput(layer)
