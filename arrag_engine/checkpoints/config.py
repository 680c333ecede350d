"""Facts of a config.json that are not in the tensors: sizes to write, sampling to read."""

from __future__ import annotations

from typing import Any

from ..models.janus.model import JanusConfig
from ..settings import Sampling

SAMPLING_NAMES = {"guidance_scale": "cfg", "temperature": "temperature"}
"""Names in a config's `generation_config`, and in `Sampling`."""


def describe_config(config: JanusConfig, sampling: Sampling | None = None) -> dict[str, Any]:
    """A config.json in the official shape with the sizes that are not in the tensors, and with
    the recommended sampling, if any is given."""
    llama = config.llama
    suits = {name: getattr(sampling, ours) for name, ours in SAMPLING_NAMES.items() if sampling}
    return {
        "generation_config": suits,
        "model_type": "multi_modality",
        "language_config": {
            "model_type": "llama",
            "vocab_size": llama.vocab_size,
            "hidden_size": llama.hidden_size,
            "intermediate_size": llama.intermediate_size,
            "num_hidden_layers": llama.num_layers,
            "num_attention_heads": llama.num_heads,
            "num_key_value_heads": llama.num_kv_heads,
            "rope_theta": llama.rope_theta,
            "rms_norm_eps": llama.rms_norm_eps,
            "max_position_embeddings": llama.max_positions,
        },
    }
