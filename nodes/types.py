"""What travels along the wires between the nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from comfy_api.latest import io
from torch import Tensor

from ..arrag_engine.daid import RetrievalOptions
from ..arrag_engine.index import PatchIndex

CATEGORY = "AR-RAG"

Model = io.Custom("ARRAG_MODEL")
Index = io.Custom("ARRAG_INDEX")
Retrieval = io.Custom("ARRAG_RETRIEVAL")
Tokens = io.Custom("ARRAG_TOKENS")
Trace = io.Custom("ARRAG_TRACE")
"""An engine's Drawing: its `traces` cost a search, so they are made when a node asks for them."""


@dataclass(frozen=True)
class RetrievalChoice:
    """An index and how to use it; a sampler joins it with its model."""

    index: PatchIndex
    options: RetrievalOptions


@dataclass(frozen=True)
class TokenGrids:
    """Codes and the codebook that gives them meaning."""

    codes: Tensor
    """[B, height, width] int64."""
    codebook: np.ndarray
    """Unit rows [codes, dim]."""
