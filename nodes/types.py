"""The types of the links between the nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from comfy_api.latest import io
from torch import Tensor

from ..arrag_engine.index import AnyIndex
from ..arrag_engine.layers import KeyChoice

CATEGORY = "AR-RAG"

Model = io.Custom("ARRAG_MODEL")
Index = io.Custom("ARRAG_INDEX")
Retrieval = io.Custom("ARRAG_RETRIEVAL")
Tokens = io.Custom("ARRAG_TOKENS")
Trace = io.Custom("ARRAG_TRACE")
"""An engine's Drawing: its `traces` cost a search, so they are made on access."""


RECOMMENDED_NUMBER = -1.0
"""In a number widget: the recommended value. No version accepted it as a value."""


@dataclass(frozen=True)
class IndexChoice:
    """An index, with the choice of its pictures and keys; the sampler applies prompt and model."""

    index: AnyIndex
    keys: KeyChoice
    only: str


@dataclass(frozen=True)
class TokenGrids:
    """Codes and the codebook that gives them meaning."""

    codes: Tensor
    """[B, height, width] int64."""
    codebook: np.ndarray
    """Unit rows [codes, dim]."""
