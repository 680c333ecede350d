"""Load FAiD Adapter, FAiD Sampler."""

from __future__ import annotations

from typing import Any

import comfy.utils
from comfy_api.latest import io

from ..arrag_engine.blend import SEMANTICS
from ..arrag_engine.errors import InputError
from ..arrag_engine.faid import MAX_CANDIDATES, MAX_STRENGTH, Faid
from . import folders
from .memory import ManagedModel, load_managed_adapter
from .samplers import draw, drawing_inputs, drawing_outputs
from .types import CATEGORY, Model, Retrieval, Trace


class LoadFAiDAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ARRAG_LoadAdapter",
            display_name="Load FAiD Adapter",
            category=CATEGORY,
            description="Puts a trained FAiD adapter from models/arrag/adapters beside a model. "
            "It is heard in the FAiD Sampler; the model itself stays as it is.",
            inputs=[
                Model.Input("model", tooltip="The model that the adapter was trained on."),
                io.Combo.Input(
                    "adapter",
                    options=list(folders.choices(folders.ADAPTERS)),
                    tooltip="Make your own with 'python -m arrag_engine train faid' and put it "
                    "into models/arrag/adapters.",
                ),
            ],
            outputs=[Model.Output("MODEL", display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, adapter: str) -> bool | str:
        return folders.validate(folders.ADAPTERS, adapter)

    @classmethod
    def fingerprint_inputs(cls, adapter: str, **_: Any) -> str:
        return folders.fingerprint(folders.resolve(folders.ADAPTERS, adapter))

    @classmethod
    def execute(cls, model: ManagedModel, adapter: str) -> io.NodeOutput:
        bar = comfy.utils.ProgressBar(1)
        path = folders.resolve(folders.ADAPTERS, adapter)
        return io.NodeOutput(load_managed_adapter(path, model, bar.update_absolute))


class FAiDSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ARRAG_FAiDSampler",
            display_name="FAiD Sampler",
            category=CATEGORY,
            description="Draws pictures token by token with a trained adapter that hears, inside "
            "the model, the patches looked up in an index (FAiD). The weight in Retrieval Options "
            "mixes DAiD in on top; 0 leaves it out.",
            inputs=[
                *drawing_inputs(),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=MAX_STRENGTH,
                    step=0.05,
                    tooltip="How much of the adapter. 0 = the model alone, 1 = as trained.",
                ),
                io.Int.Input(
                    "candidates",
                    default=0,
                    min=0,
                    max=MAX_CANDIDATES,
                    tooltip="How many of the nearest patches the adapter hears at each position. "
                    "0 = as many as it was trained with.",
                ),
                io.Combo.Input(
                    "semantics",
                    options=list(SEMANTICS),
                    default=SEMANTICS[0],
                    tooltip="Where nothing is looked up, along the borders, later blenders hear "
                    "the first one's output (step, the official way to draw) or nothing "
                    "(stepzero).",
                ),
                Retrieval.Input(
                    "retrieval",
                    optional=True,
                    tooltip="From Retrieval Options: the index to look patches up in. Left open, "
                    "the adapter hears nothing.",
                ),
            ],
            outputs=[
                *drawing_outputs(),
                Trace.Output("TRACE", display_name="trace", tooltip="What was looked up where."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: ManagedModel,
        strength: float,
        candidates: int,
        semantics: str,
        **settings: Any,
    ) -> io.NodeOutput:
        if model.checkpoint.faid is None:
            raise InputError(
                f"the model {model.checkpoint.name} has no FAiD blenders; "
                "put a Load FAiD Adapter node in front"
            )
        faid = Faid(model.checkpoint.faid, strength, candidates, semantics)  # type: ignore[arg-type]
        return io.NodeOutput(*draw(cls.hidden.unique_id, model, faid=faid, **settings))
