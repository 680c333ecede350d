"""The precision that a decoder computes in."""

from __future__ import annotations

import torch

from ..errors import InputError
from ..settings import DTYPE_CHOICES

STORAGES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""Choices that name what weights are stored in; the device decides what they are computed in."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """What the decoder computes in. `auto`, int8 and fp8: bfloat16 where the device computes in it,
    else float16 on CUDA and float32 on a CPU.

    On a CPU without bfloat16 instructions float32 is as fast (measured), at twice the memory.

    Raises:
        InputError: No such choice, or one that the device does not know.
    """
    if name not in DTYPE_CHOICES:
        raise InputError(f"dtype is {name!r}; choose one of {', '.join(DTYPE_CHOICES)}")
    if name == "fp8" and device.type == "mps":
        raise InputError("dtype is 'fp8', which mps does not store; choose int8")
    if name in DTYPES:
        return DTYPES[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu" and not _cpu_computes_bf16():
        return torch.float32
    return torch.bfloat16


def resolve_storage(name: str) -> torch.dtype | None:
    """What the decoder's linear layers store their weights in; None: in what they compute in."""
    return STORAGES.get(name)


def _cpu_computes_bf16() -> bool:
    """Whether the processor has bfloat16 instructions; False on an old PyTorch."""
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return known is not None and known()
