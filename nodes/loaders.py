"""Load AR Model, Load Patch Index."""

from __future__ import annotations

from dataclasses import replace

import comfy.utils
from comfy_api.latest import io

from ..arrag_engine.checkpoint import DTYPE_CHOICES
from ..arrag_engine.grid import BORDERS, NEIGHBORHOODS
from ..arrag_engine.index import KEY_SPACES, MAX_POSITION_WEIGHT, KeySpec, PatchIndex, load_index
from . import folders
from .memory import load_managed
from .types import CATEGORY, Index, Model

AS_BUILT = "as built"
AS_BUILT_WEIGHT = -1.0
LICENCES = 5
"""How many of an index's licences are named."""


class LoadARModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ARRAG_LoadModel",
            display_name="Load AR Model",
            category=CATEGORY,
            description="Loads an autoregressive image model of the Janus-Pro family from "
            "models/arrag/models: a downloaded folder or one .safetensors file.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(folders.choices(folders.MODELS)),
                    tooltip="pocket is a tiny model that is included. Put other models into "
                    "models/arrag/models.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPE_CHOICES),
                    default="auto",
                    tooltip="Precision of the decoder. auto: bf16 where the device computes in it, "
                    "otherwise fp16 on a GPU and fp32 on a CPU. 16 bits halve the memory.",
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
            description="Loads a patch index from models/arrag/indexes: the patches of real "
            "pictures that a sampler retrieves while it draws.",
            inputs=[
                io.Combo.Input(
                    "index",
                    options=list(folders.choices(folders.INDEXES)),
                    tooltip="pocket is included. Make your own with the node Build Patch Index or "
                    "with 'python -m arrag_engine build'.",
                ),
                io.Combo.Input(
                    "neighborhood",
                    options=[AS_BUILT, *NEIGHBORHOODS],
                    default=AS_BUILT,
                    optional=True,
                    tooltip="Which patches around a position form its key. The keys of exactly "
                    "searched indexes can be changed here; those of larger ones are fixed.",
                ),
                io.Combo.Input(
                    "borders",
                    options=[AS_BUILT, *BORDERS],
                    default=AS_BUILT,
                    optional=True,
                    tooltip="skip: no retrieval where a neighbour would lie outside the picture. "
                    "zero: such a neighbour counts as zeros.",
                ),
                io.Combo.Input(
                    "key_space",
                    options=[AS_BUILT, *KEY_SPACES],
                    default=AS_BUILT,
                    optional=True,
                    tooltip="Vectors that keys consist of: the encoder's continuous vectors, or "
                    "the codebook vectors of the codes.",
                ),
                io.Float.Input(
                    "position_weight",
                    default=AS_BUILT_WEIGHT,
                    min=AS_BUILT_WEIGHT,
                    max=MAX_POSITION_WEIGHT,
                    step=0.05,
                    optional=True,
                    tooltip="Weight of the position in the picture when keys are compared. 0: the "
                    "position is ignored. -1: as built.",
                ),
                io.String.Input(
                    "only",
                    default="",
                    optional=True,
                    tooltip="Retrieve only patches of pictures whose caption, file name or source "
                    "contains this text. With * ? or [ ], it is a pattern for the whole text.",
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
    def fingerprint_inputs(cls, index: str, **_: object) -> str:
        return folders.fingerprint(folders.resolve(folders.INDEXES, index))

    @classmethod
    def execute(
        cls,
        index: str,
        neighborhood: str = AS_BUILT,
        borders: str = AS_BUILT,
        key_space: str = AS_BUILT,
        position_weight: float = AS_BUILT_WEIGHT,
        only: str = "",
    ) -> io.NodeOutput:
        path = folders.resolve(folders.INDEXES, index)
        loaded = load_index(path)
        spec = changed_keys(loaded.spec, neighborhood, borders, key_space, position_weight)
        loaded = loaded.rekeyed(spec)
        if only.strip():
            loaded = loaded.matching(only.strip())
        return io.NodeOutput(loaded, describe(index, loaded, path.stat().st_size))


def changed_keys(
    spec: KeySpec, neighborhood: str, borders: str, key_space: str, position_weight: float
) -> KeySpec:
    """The way keys are made, but for what was chosen otherwise."""
    chosen = {"neighborhood": neighborhood, "borders": borders, "space": key_space}
    changes: dict = {name: value for name, value in chosen.items() if value != AS_BUILT}
    if position_weight != AS_BUILT_WEIGHT:
        changes["position_weight"] = position_weight
    return replace(spec, **changes)


def describe(name: str, index: PatchIndex, size: int) -> str:
    """A few lines for a person.

    Args:
        size: Bytes of the file.
    """
    spec, counts = index.spec, index.sources.licence_counts()
    told = [f"{licence or 'unknown'}: {n}" for licence, n in list(counts.items())[:LICENCES]]
    more = f" and {len(counts) - LICENCES} more" if len(counts) > LICENCES else ""
    lines = [
        f"{name}: {len(index.tokens)} pictures, {size / 1e6:.1f} MB",
        f"{index.size} patches to look up"
        + ("" if index.images is None else f", of {len(index.images)} matching pictures"),
        f"licences: {', '.join(told)}{more}",
        f"grid {index.grid}, neighbours {spec.neighborhood}, borders {spec.borders}, "
        f"keys {spec.space}, position weight {spec.position_weight:g}",
        f"{index.searcher.kind} search, recall {index.recall:.3f} when built",
    ]
    return "\n".join(lines)
