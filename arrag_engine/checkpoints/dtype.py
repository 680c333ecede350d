"""The precision that a decoder computes in."""

from __future__ import annotations

import torch

from ..errors import InputError
from ..settings import DTYPE_CHOICES

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The decoder's dtype. `auto`: bfloat16 where the device computes in it, else float16 on CUDA
    and float32 on a CPU.

    On a CPU without bfloat16 instructions float32 is as fast (measured), at twice the memory.
    """
    if name not in DTYPE_CHOICES:
        raise InputError(f"dtype is {name!r}; choose one of {', '.join(DTYPE_CHOICES)}")
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu" and not _cpu_computes_bf16():
        return torch.float32
    return torch.bfloat16


def _cpu_computes_bf16() -> bool:
    """Whether the processor has bfloat16 instructions; False on an old PyTorch."""
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return known is not None and known()
