"""How many codes change when the encoder computes in less than float32.

    python scripts/bench_codes.py [--pictures 200] [--out FILE.json]

Pictures of the shipped indexes are decoded, and encoded again by their models: in float32, with
convolutions in TF32 (operands rounded to 10 bits of mantissa, sums in float32), and under bfloat16
autocast. A margin is how far a number may move before the code is another one: between the two
nearest rows of the codebook, or from 0 for codes of signs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from arrag_engine import shipped
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.files import write_text
from arrag_engine.index import load_index
from arrag_engine.models.showo.vq import VQModel as SignVQ

MODELS = ("pocket", "pocket-o")
BATCH = 8
MANTISSA = 13
"""Bits of a float32's mantissa that TF32 lacks."""


class TF32(TorchFunctionMode):
    """Convolutions as a GPU computes them in TF32."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.conv2d:
            args = (rounded(args[0]), rounded(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


def rounded(x: Tensor) -> Tensor:
    """To the nearest number with 10 bits of mantissa, ties away from zero."""
    bits = x.contiguous().view(torch.int32) + (1 << (MANTISSA - 1))
    return (bits >> MANTISSA << MANTISSA).view(torch.float32)


ARITHMETIC: dict[str, AbstractContextManager[Any]] = {
    "TF32 convolutions": TF32(),
    "bf16 autocast": torch.autocast("cpu", torch.bfloat16),
}


def codes_and_margins(vq: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and margins [B, h, w] of images [B, 3, H, W]."""
    if isinstance(vq, SignVQ):
        z = vq.encoder(images).permute(0, 2, 3, 1).float()
        places = 1 << torch.arange(z.shape[-1])
        return ((z > 0) * places).sum(dim=-1), z.abs().amin(dim=-1)
    z = vq.features(images).float()
    with torch.autocast("cpu", enabled=False):  # else the product loses its last digits, too
        products = z @ vq.quantize.rows(torch.device("cpu")).T
    first, second = products.topk(2, dim=-1).values.unbind(dim=-1)
    return products.argmax(dim=-1), first - second


def pictures(vq: Any, tokens: np.ndarray) -> Iterator[Tensor]:
    """Images [B, 3, H, W] in [-1, 1], rounded as a picture file rounds them, of codes [n, h, w]."""
    for first in range(0, len(tokens), BATCH):
        image = vq.decode(torch.from_numpy(tokens[first : first + BATCH].astype(np.int64)))
        yield ((image.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


@torch.inference_mode()
def compare(name: str, count: int) -> dict[str, dict[str, float]]:
    """What changes, by arithmetic."""
    index = load_index(shipped.resolve(name, shipped.INDEXES))
    vq = load_checkpoint(shipped.resolve(name, shipped.MODELS), torch.float32).model.vq
    chosen = np.random.default_rng(0).permutation(len(index.tokens))[:count]
    grids = index.tokens[chosen].reshape(-1, index.grid.height, index.grid.width)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {"float32": []}
    for images in pictures(vq, grids):
        for key, arithmetic in ({"float32": nullcontext()} | ARITHMETIC).items():
            with arithmetic:
                found.setdefault(key, []).append(codes_and_margins(vq, images))
    codes, margins = joined(found.pop("float32"))
    facts = {}
    for key, parts in found.items():
        changed = joined(parts)[0] != codes
        doubtful = margins <= (margins[changed].max() if changed.any() else -1)
        facts[key] = {
            "codes": changed.numel(),
            "changed": changed.float().mean().item(),
            "pictures changed": changed.any(dim=1).float().mean().item(),
            "doubtful by margin": doubtful.float().mean().item(),
            "pictures without doubt": (~doubtful).all(dim=1).float().mean().item(),
        }
    return facts


def joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Codes and margins [pictures, N]."""
    codes, margins = (torch.cat(part).flatten(1) for part in zip(*parts, strict=True))
    return codes, margins


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    a = parser.parse_args()
    facts = {name: compare(name, a.pictures) for name in a.models}
    text = json.dumps(facts, indent=1)
    print(text)
    if a.out:
        write_text(a.out, text + "\n")


if __name__ == "__main__":
    main()
