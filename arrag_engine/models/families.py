"""The models that draw."""

from __future__ import annotations

from .janus.model import JanusConfig, JanusPro
from .showo.model import ShowO, ShowOConfig

ImageModel = JanusPro | ShowO
Sizes = JanusConfig | ShowOConfig
