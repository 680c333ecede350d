"""Load FAiD Adapter, FAiD Sampler."""

from __future__ import annotations

from functools import partial
from typing import Any

import comfy.utils
from comfy_api.latest import io

from ..arrag_engine.bounds import CANDIDATES, STRENGTH
from ..arrag_engine.errors import InputError
from ..arrag_engine.faid import Faid
from ..arrag_engine.layers import Layer
from ..arrag_engine.settings import SEMANTICS
from . import folders
from .inputs import checked, fingerprint
from .memory import ManagedModel, load_managed_adapter
from .newer import ADVANCED, found_by
from .samplers import (
    DrawingSettings,
    check_order,
    draw,
    drawing_inputs,
    later_inputs,
    retrieval_input,
    traced_outputs,
)
from .types import CATEGORY, Model


class LoadFAiDAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ARRAG_LoadAdapter",
            display_name="Load FAiD Adapter",
            category=CATEGORY,
            description="Attaches a trained FAiD adapter from models/arrag/adapters to a model. "
            "The FAiD Sampler or, for Show-o, the Masked Sampler uses it; the weights of the model "
            "do not change.",
            **found_by("FAiD", "LoRA"),
            inputs=[
                Model.Input("model", tooltip="The model that the adapter was trained on."),
                io.Combo.Input(
                    "adapter",
                    options=list(folders.choices(folders.ADAPTERS)),
                    tooltip="pocket is included. Train your own with 'python -m arrag_engine train "
                    "faid' and put the file into models/arrag/adapters.",
                ),
            ],
            outputs=[Model.Output("MODEL", display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, adapter: str) -> bool | str:
        return folders.validate(folders.ADAPTERS, adapter)

    @classmethod
    def fingerprint_inputs(cls, adapter: Any = None, **_: Any) -> str | float:
        return fingerprint(partial(folders.state, folders.ADAPTERS), adapter)

    @classmethod
    @checked
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
            description="Draws pictures token by token with a trained adapter that blends "
            "retrieved patches into the model's hidden states (FAiD). A weight above 0 in "
            "Retrieval Options "
            "applies DAiD in addition.",
            **found_by("AR-RAG", "adapter", "retrieval", "Janus"),
            inputs=[
                *drawing_inputs(),
                *adapter_inputs("Strength of the adapter. 0 = the model alone, 1 = as trained."),
                io.Combo.Input(
                    "semantics",
                    options=list(SEMANTICS),
                    default=SEMANTICS[0],
                    tooltip="Input of later blenders at positions without retrieval, along the "
                    "borders: the output of the first blender (step, as in the official inference) "
                    "or zeros (stepzero, as in the official training).",
                    **ADVANCED,
                ),
                retrieval_input(
                    "From Retrieval Options: the index to retrieve patches from. Without it, the "
                    "adapter receives no patches."
                ),
                *later_inputs(),
            ],
            outputs=traced_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: ManagedModel,
        strength: float,
        candidates: int,
        semantics: str,
        retrieval: tuple[Layer, ...] = (),
        **settings: Any,
    ) -> io.NodeOutput:
        check_order(model, raster=True)
        if model.checkpoint.faid is None:
            raise InputError(
                f"the model {model.checkpoint.name} has no FAiD blenders; "
                "connect it through a Load FAiD Adapter node"
            )
        faid = Faid(model.checkpoint.faid, strength, candidates, semantics)  # type: ignore[arg-type]
        drawn = draw(
            cls.hidden.unique_id, model, DrawingSettings(**settings), retrieval or (), faid
        )
        return io.NodeOutput(*drawn)


def adapter_inputs(strength: str) -> list[io.Input]:
    """How an adapter works.

    Args:
        strength: Tooltip of its strength.
    """
    return [
        io.Float.Input(
            "strength",
            default=1.0,
            min=STRENGTH.low,
            max=STRENGTH.high,
            step=0.05,
            tooltip=strength,
        ),
        io.Int.Input(
            "candidates",
            default=0,
            min=CANDIDATES.low,
            max=CANDIDATES.high,
            tooltip="Number of nearest patches that the adapter receives at each position. "
            "0 = the number that it was trained with.",
            **ADVANCED,
        ),
    ]
