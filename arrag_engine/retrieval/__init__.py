"""Retrieval: from the tokens drawn so far to a distribution of the next one."""

from .copying import CopiedRegion, copied_regions, over_copying_score
from .device_source import Places, device_bytes, device_index, on_device, where_faster
from .layers import FoundByLayers, Layers, Proposals, layers_of, nearest_codes
from .mixture import Proposal, mix, proposal_distribution
from .query import Asked, QueryMaker
from .retriever import Retriever, calibrated_options, make_retriever, suited
from .source import PatchSource
from .steering import Steering, row_weights, shares_of_cells

__all__ = [
    "Asked",
    "CopiedRegion",
    "FoundByLayers",
    "Layers",
    "PatchSource",
    "Places",
    "Proposal",
    "Proposals",
    "QueryMaker",
    "Retriever",
    "Steering",
    "calibrated_options",
    "copied_regions",
    "device_bytes",
    "device_index",
    "layers_of",
    "make_retriever",
    "mix",
    "nearest_codes",
    "on_device",
    "over_copying_score",
    "proposal_distribution",
    "row_weights",
    "shares_of_cells",
    "suited",
    "where_faster",
]
