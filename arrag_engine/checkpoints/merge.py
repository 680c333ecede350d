"""An adapter and its base as one checkpoint in the released layout."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ..models.janus.layouts import blender_config, official_name
from ..models.layouts import section
from .adapter import OpenedAdapter, check_base, check_tensors, open_adapter
from .convert import write_checkpoint
from .fingerprint import read_fingerprint
from .opening import open_checkpoint
from .tokenizer import read_tokenizer


def merge_adapter(
    base: Path, adapter: Path, out: Path, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write base and adapter as one whole checkpoint in the published layout: blenders beside the
    weights, the low-rank changes and the head inside them. Blenders the base had are left out.

    Raises:
        InputError: One of them does not load, they do not fit, or `out` cannot be written.
    """
    opened, learnt = open_checkpoint(base), open_adapter(adapter)
    name = Path(base).stem if Path(base).is_file() else Path(base).name
    hidden = opened.janus.llama.hidden_size
    check_base(learnt, name, read_fingerprint(opened), hidden)
    check_tensors(learnt, opened.janus)
    tokenizer = read_tokenizer(opened.tokenizer)
    tensors: dict[str, Tensor] = {}
    for done, (file_name, ours) in enumerate(opened.names.items(), start=1):
        tensors[official_name(ours)] = _merged(opened.weights.read(file_name), ours, learnt)
        if progress is not None:
            progress(done, len(opened.names))
    for ours in learnt.weights.shapes:
        if ".blender." in ours or ".retrieval_layernorm." in ours:
            tensors[official_name(ours)] = learnt.weights.read(ours)
    config = dict(opened.config)
    language = dict(section(config, "language_config", "text_config"))
    if learnt.info.config.blender_layers:
        language |= blender_config(learnt.info.config, opened.janus.llama.num_layers)
    config["language_config"] = language
    write_checkpoint(out, tensors, opened.janus.grid, config, tokenizer)


def _merged(weight: Tensor, ours: str, learnt: OpenedAdapter) -> Tensor:
    """A base tensor as the adapter changes it, in the base's dtype."""
    if ours in learnt.weights.shapes:  # the head
        return learnt.weights.read(ours).to(weight.dtype)
    match = re.fullmatch(r"llama\.(layers\.\d+\.)self_attn\.([qv]_proj)\.weight", ours)
    rank = learnt.info.config.rank
    if match is None or rank == 0:
        return weight
    down, up = (
        learnt.weights.read(f"{match[1]}{match[2]}.lora_{part}.weight").float() for part in "AB"
    )
    return (weight.float() + up @ down * (learnt.info.config.alpha / rank)).to(weight.dtype)
