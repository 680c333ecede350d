"""Load AR Model, Load Patch Index."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import comfy.utils
from comfy_api.latest import io

from ..arrag_engine.bounds import POSITION_WEIGHT
from ..arrag_engine.grid import BORDERS, NEIGHBORHOODS
from ..arrag_engine.index import KEY_SPACES, AnyIndex, file_bytes, open_lookup
from ..arrag_engine.layers import AS_BUILT_KEYS, KeyChoice
from ..arrag_engine.settings import AS_BUILT, DTYPE_CHOICES, PROMPT, RECOMMENDED
from . import folders
from .inputs import checked, chosen, fingerprint
from .memory import load_managed
from .newer import ADVANCED, found_by
from .types import CATEGORY, RECOMMENDED_NUMBER, Index, IndexChoice, Model

CLUSTER = "ARRAG_CLUSTER"
"""Environment variable: address of the Ray cluster that searches indexes in shards. No workflow can
name one: Ray passes pickles."""
LICENCES = 5
"""How many of an index's licences are named."""


class LoadARModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ARRAG_LoadModel",
            display_name="Load AR Model",
            category=CATEGORY,
            description="Loads an image model of the Janus-Pro family or the Show-o family from "
            "models/arrag/models: a downloaded folder or one .safetensors file.",
            **found_by("Janus", "Show-o", "checkpoint", "autoregressive"),
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
                    "otherwise fp16 on a GPU and fp32 on a CPU. 16 bits halve the memory. int8 and "
                    "fp8 store the weights in 8 bits: half of that, with a small loss of quality.",
                    **ADVANCED,
                ),
            ],
            outputs=[Model.Output("MODEL", display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, model: str) -> bool | str:
        return folders.validate(folders.MODELS, model)

    @classmethod
    def fingerprint_inputs(cls, model: Any = None, **_: Any) -> str | float:
        return fingerprint(partial(folders.state, folders.MODELS), model)

    @classmethod
    @checked
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
            **found_by("patch database", "reference pictures", "retrieval"),
            inputs=[
                io.Combo.Input(
                    "index",
                    options=list(folders.choices(folders.INDEXES)),
                    tooltip="pocket is included. Make your own with the node Build Patch Index or "
                    "with 'python -m arrag_engine build'.",
                ),
                io.Combo.Input(
                    "neighborhood",
                    options=[AS_BUILT, *NEIGHBORHOODS, RECOMMENDED],
                    default=RECOMMENDED,
                    optional=True,
                    tooltip="Which patches around a position form its key. The keys of exactly "
                    "searched indexes can be changed here; those of larger ones are fixed. "
                    "recommended: the keys that draw best with the model.",
                ),
                io.Combo.Input(
                    "borders",
                    options=[AS_BUILT, *BORDERS, RECOMMENDED],
                    default=RECOMMENDED,
                    optional=True,
                    tooltip="skip: no retrieval where a neighbour would lie outside the picture. "
                    "zero: such a neighbour counts as zeros.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "key_space",
                    options=[AS_BUILT, *KEY_SPACES, RECOMMENDED],
                    default=RECOMMENDED,
                    optional=True,
                    tooltip="Vectors that keys consist of: the encoder's continuous vectors, or "
                    "the codebook vectors of the codes.",
                    **ADVANCED,
                ),
                io.Float.Input(
                    "position_weight",
                    default=RECOMMENDED_NUMBER,
                    min=RECOMMENDED_NUMBER,
                    max=POSITION_WEIGHT.high,
                    step=0.05,
                    optional=True,
                    tooltip="Weight of the position in the picture when keys are compared. 0: the "
                    "position is ignored. -1: as the choice of neighborhood, as built or "
                    "recommended.",
                    **ADVANCED,
                ),
                io.String.Input(
                    "only",
                    default=PROMPT,
                    optional=True,
                    tooltip="Which pictures to retrieve from. {prompt}: those whose captions share "
                    "the prompt's rare words. Other text: those whose caption, file name or source "
                    "contains it; with * ? or [ ] it is a pattern. Empty: all.",
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
    def fingerprint_inputs(cls, index: Any = None, **_: Any) -> str | float:
        return fingerprint(partial(folders.state, folders.INDEXES), index)

    @classmethod
    @checked
    def execute(
        cls,
        index: str,
        neighborhood: str = AS_BUILT,
        borders: str = AS_BUILT,
        key_space: str = AS_BUILT,
        position_weight: float = RECOMMENDED_NUMBER,
        only: str = "",
    ) -> io.NodeOutput:
        path = folders.resolve(folders.INDEXES, index)
        loaded = open_lookup(path, os.environ.get(CLUSTER, ""))
        keys = KeyChoice(neighborhood, borders, key_space, chosen(POSITION_WEIGHT, position_weight))
        shown = loaded
        if keys == AS_BUILT_KEYS or RECOMMENDED not in (neighborhood, borders, key_space):
            loaded = shown = loaded.rekeyed(keys.spec(loaded.spec, loaded.spec))
            keys = AS_BUILT_KEYS
        if only.strip() and PROMPT not in only:
            loaded = shown = loaded.matching(only.strip())
            only = ""
        choice = IndexChoice(loaded, keys, only)
        return io.NodeOutput(choice, describe(index, shown, file_bytes(path)))


def describe(name: str, index: AnyIndex, size: int) -> str:
    """A few lines for a person.

    Args:
        size: Bytes of the file.
    """
    total, spec, counts = len(index.tokens), index.spec, index.sources.licence_counts()
    listed = [f"{licence or 'unknown'}: {n}" for licence, n in list(counts.items())[:LICENCES]]
    more = f" and {len(counts) - LICENCES} more" if len(counts) > LICENCES else ""
    lines = [
        f"{name}: {total} pictures, {size / 1e6:.1f} MB",
        f"{index.size} patches to look up"
        + ("" if index.pictures == total else f", of {index.pictures} matching pictures"),
        f"licences: {', '.join(listed)}{more}",
        f"grid {index.grid}, neighbours {spec.neighborhood}, borders {spec.borders}, "
        f"keys {spec.space}, position weight {spec.position_weight:g}",
        f"{index.structure} search, recall {index.recall:.3f} when built",
    ]
    return "\n".join(lines)
