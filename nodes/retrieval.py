"""Retrieval Options."""

from __future__ import annotations

from comfy_api.latest import io

from ..arrag_engine.daid import calibrated_options
from ..arrag_engine.index import PatchIndex
from ..arrag_engine.settings import DUPLICATES, Duplicates, RetrievalOptions
from .types import CATEGORY, Index, Retrieval, RetrievalChoice

DEFAULTS = RetrievalOptions()
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
            inputs=[
                Index.Input("index", tooltip="The index to retrieve patches from."),
                io.Float.Input(
                    "weight",
                    default=DEFAULTS.weight,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="λ: the share of the next token's distribution that comes from the "
                    "retrieved patches. 0 = the model alone.",
                ),
                io.Float.Input(
                    "temperature",
                    default=DEFAULTS.temperature,
                    min=0.001,
                    max=1000.0,
                    step=0.01,
                    tooltip="τ: a low value prefers the nearest patches, a high value weights all "
                    "neighbours alike.",
                ),
                io.Int.Input(
                    "neighbours",
                    default=DEFAULTS.neighbours,
                    min=1,
                    max=1_000_000,
                    tooltip="K: number of patches that each query returns. Values above the size "
                    "of the index return all patches.",
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
                ),
                io.Combo.Input(
                    "duplicates",
                    options=list(DUPLICATES),
                    default=DEFAULTS.duplicates,
                    optional=True,
                    tooltip="Neighbours that propose the same token. first: only the nearest of "
                    "them counts. sum: their weights add up, so that frequent tokens weigh more.",
                ),
                io.Float.Input(
                    "top_p",
                    default=DEFAULTS.top_p,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Keeps only the most probable proposals up to this total probability. "
                    "1 = all.",
                ),
            ],
            outputs=[Retrieval.Output("RETRIEVAL", display_name="retrieval")],
        )

    @classmethod
    def execute(
        cls,
        index: PatchIndex,
        weight: float,
        temperature: float,
        neighbours: int,
        settings_from: str = FIXED,
        duplicates: Duplicates = DEFAULTS.duplicates,
        top_p: float = DEFAULTS.top_p,
    ) -> io.NodeOutput:
        if settings_from == CALIBRATED:
            return io.NodeOutput(RetrievalChoice(index, calibrated_options(index)))
        options = RetrievalOptions(weight, temperature, neighbours, duplicates, top_p)
        return io.NodeOutput(RetrievalChoice(index, options))
