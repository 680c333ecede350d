"""Load AR Model, Load Patch Index."""

from __future__ import annotations

import comfy.utils
from comfy_api.latest import io

from ..arrag_engine.checkpoint import DTYPE_CHOICES
from ..arrag_engine.index import PatchIndex, load_index
from . import folders
from .memory import load_managed
from .types import CATEGORY, Index, Model


class LoadARModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ARRAG_LoadModel",
            display_name="Load AR Model",
            category=CATEGORY,
            description="Loads an autoregressive image model of the Janus-Pro family from "
            "models/arrag/models: a folder as downloaded, or one .safetensors file.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(folders.choices(folders.MODELS)),
                    tooltip="pocket is a tiny model that comes with the extension. "
                    "Put others into models/arrag/models.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPE_CHOICES),
                    default="auto",
                    tooltip="What the decoder computes in. auto: bf16 where the device has it, "
                    "else fp16 on a GPU, fp32 on a CPU. 16 bits halve the memory.",
                ),
            ],
            outputs=[Model.Output("MODEL", display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, model: str) -> bool | str:
        return folders.validate(folders.MODELS, model)

    @classmethod
    def fingerprint_inputs(cls, model: str, dtype: str) -> str:
        return folders.fingerprint(folders.resolve(folders.MODELS, model))

    @classmethod
    def execute(cls, model: str, dtype: str) -> io.NodeOutput:
        bar = comfy.utils.ProgressBar(1)
        path = folders.resolve(folders.MODELS, model)
        return io.NodeOutput(load_managed(path, dtype, bar.update_absolute))


class LoadPatchIndex(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ARRAG_LoadIndex",
            display_name="Load Patch Index",
            category=CATEGORY,
            description="Loads a patch index from models/arrag/indexes: the library of real "
            "patches to look up while drawing.",
            inputs=[
                io.Combo.Input(
                    "index",
                    options=list(folders.choices(folders.INDEXES)),
                    tooltip="pocket comes with the extension. Make your own with "
                    "'python -m arrag_engine build' and put it into models/arrag/indexes.",
                ),
            ],
            outputs=[
                Index.Output("INDEX", display_name="index"),
                io.String.Output("INFO", display_name="info", tooltip="What the index holds."),
            ],
        )

    @classmethod
    def validate_inputs(cls, index: str) -> bool | str:
        return folders.validate(folders.INDEXES, index)

    @classmethod
    def fingerprint_inputs(cls, index: str) -> str:
        return folders.fingerprint(folders.resolve(folders.INDEXES, index))

    @classmethod
    def execute(cls, index: str) -> io.NodeOutput:
        loaded = load_index(folders.resolve(folders.INDEXES, index))
        return io.NodeOutput(loaded, describe(index, loaded))


def describe(name: str, index: PatchIndex) -> str:
    """A few lines for a person."""
    licences = ", ".join(sorted({s.licence or "unknown licence" for s in index.sources}))
    return (
        f"{name}: {index.size} patches of {len(index.tokens)} pictures ({licences})\n"
        f"grid {index.grid}, neighbours {index.spec.neighborhood}, borders {index.spec.borders}, "
        f"keys {index.spec.space}"
    )
