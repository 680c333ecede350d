"""Retrieval Options."""

from __future__ import annotations

from comfy_api.latest import io

from ..arrag_engine.daid import DUPLICATES, Duplicates, RetrievalOptions, calibrated_options
from ..arrag_engine.index import PatchIndex
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
            description="How much the patches of an index weigh while drawing, and how many are "
            "asked.",
            inputs=[
                Index.Input("index", tooltip="Where to look patches up."),
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
                    tooltip="τ: low trusts the nearest patches, high asks all of them alike.",
                ),
                io.Int.Input(
                    "neighbours",
                    default=DEFAULTS.neighbours,
                    min=1,
                    max=1_000_000,
                    tooltip="K: how many patches each look-up brings back. More than the index "
                    "holds means all of them.",
                ),
                io.Combo.Input(
                    "settings_from",
                    options=[FIXED, CALIBRATED],
                    default=FIXED,
                    optional=True,
                    tooltip="With the index's calibration, none of the numbers and choices here "
                    "count: each position gets a weight of its own, high where the patches "
                    "found are near and agree and the prompt has words that the model does not "
                    "know. Only for calibrated indexes.",
                ),
                io.Combo.Input(
                    "duplicates",
                    options=list(DUPLICATES),
                    default=DEFAULTS.duplicates,
                    optional=True,
                    tooltip="Several of the patches found propose the same token: first counts the "
                    "nearest of them only, sum adds them up, so that what comes often weighs more.",
                ),
                io.Float.Input(
                    "top_p",
                    default=DEFAULTS.top_p,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Use the most probable proposals up to this mass only. 1 = all.",
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
