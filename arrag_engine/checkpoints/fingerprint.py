"""The fingerprint of a base model, which its adapters store."""

from __future__ import annotations

import hashlib

import torch

from .opening import Opened

FINGERPRINT_ROWS = 4
DECODERS = ("llama.", "phi.")


def read_fingerprint(opened: Opened) -> str:
    """A hash of some weights rounded to bfloat16, so that other dtypes of them have it too.

    It covers the norms, the image-token embedding of a Janus-Pro, and a few rows of every layer's q
    and v and of the prediction head, which are what an adapter or fine-tuning changes.
    """
    digest = hashlib.sha256()
    files = {ours: name for name, ours in opened.names.items()}
    for ours in sorted(files):
        part = None
        if ours == "gen_embed.weight" or ("norm" in ours and ours.startswith(DECODERS)):
            part = opened.weights.read(files[ours])
        elif ours.endswith(("q_proj.weight", "v_proj.weight", "vision_head.weight")):
            part = opened.weights.read(files[ours], FINGERPRINT_ROWS)
        if part is not None:
            digest.update(ours.encode())
            digest.update(part.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
