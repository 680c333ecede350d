"""The list of nodes that ComfyUI gets."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import folders
from .attribution import SaveWithAttribution
from .border import bordered, guard_log
from .build import BuildPatchIndex
from .faid import FAiDSampler, LoadFAiDAdapter
from .loaders import LoadARModel, LoadPatchIndex
from .map import RetrievalMap
from .masked import MaskedSampler
from .retrieval import RetrievalOptionsNode
from .samplers import ARSampler, DAiDSampler
from .vq import VQDecode, VQEncode

NODES: list[type[io.ComfyNode]] = [
    LoadARModel,
    LoadPatchIndex,
    BuildPatchIndex,
    RetrievalOptionsNode,
    ARSampler,
    DAiDSampler,
    LoadFAiDAdapter,
    FAiDSampler,
    VQEncode,
    VQDecode,
    SaveWithAttribution,
    RetrievalMap,
    MaskedSampler,
]


class ArragExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        folders.register()
        guard_log()
        return [bordered(node) for node in NODES]
