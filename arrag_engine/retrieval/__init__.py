"""Retrieval: from the tokens drawn so far to a distribution of the next one."""

from .device_source import device_bytes, device_index, on_device, where_faster
from .mixture import Proposal, mix, proposal_distribution
from .query import Asked, QueryMaker
from .retriever import Retriever, calibrated_options, make_retriever
from .source import PatchSource

__all__ = [
    "Asked",
    "PatchSource",
    "Proposal",
    "QueryMaker",
    "Retriever",
    "calibrated_options",
    "device_bytes",
    "device_index",
    "make_retriever",
    "mix",
    "on_device",
    "proposal_distribution",
    "where_faster",
]
