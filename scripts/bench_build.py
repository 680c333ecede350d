"""What building an index costs beside the VQ encoder.

    python scripts/bench_build.py [--pictures 200] [--side 512] [--model pocket | --janus]

The pictures are built into an index three times, and in turn with it the encoder alone goes over
the same tensors. Prints pictures per second, and the share of the encoder's own time that all else
adds: listing, reading, decoding, resizing, hashing, thumbnails, keys, search structure, file.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from arrag_engine import shipped
from arrag_engine.build import build_index, encode_images
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.grid import Grid
from arrag_engine.images import fit, open_picture
from arrag_engine.models.janus.model import JanusConfig, JanusPro
from arrag_engine.models.janus.vq import VQConfig
from arrag_engine.models.llama import LlamaConfig

ROUNDS = 3
LIMIT = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--side", type=int, default=512, help="pixels of the longer side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--janus", action="store_true", help="Janus-Pro's VQ with random weights")
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    device = torch.device(a.device)
    model = (janus() if a.janus else pocket(a.model)).to(device)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "pictures")
        make_pictures(folder, a.pictures, a.side)
        images = [fit(open_picture(p), *model.config.image_size) for p in sorted(folder.iterdir())]
        encode_images(model, images[:2], device)  # the first one warms up
        out, rounds = Path(work, "a.safetensors"), []
        for _ in range(ROUNDS):
            whole = timed(lambda: build_index(model, folder, out, fresh=True))
            rounds.append((whole, timed(lambda: encode_images(model, images, device))))
    print(f"{a.pictures} JPEGs of {a.side} pixels, {a.threads} threads, {device}, {ROUNDS} rounds")
    for i, clock in enumerate(("by the clock", "in CPU time")):
        whole, alone = zip(*((w[i], e[i]) for w, e in rounds), strict=True)
        shares = [w / e - 1 for w, e in zip(whole, alone, strict=True)]
        pace = a.pictures / statistics.median(whole)
        print(
            f"{clock}: {pace:.2f} pictures/s, the encoder alone "
            f"{a.pictures / statistics.median(alone):.2f}; all else adds "
            f"{statistics.median(shares):.1%} ({', '.join(f'{s:.1%}' for s in shares)}), "
            f"limit {LIMIT:.0%}"
        )


def pocket(name: str) -> JanusPro:
    return load_checkpoint(shipped.resolve(name, shipped.MODELS), torch.float32).janus


def janus() -> JanusPro:
    """The VQ of Janus-Pro at its own size; a decoder of next to nothing."""
    torch.manual_seed(0)
    config = JanusConfig(LlamaConfig(16, 32, 32, 1, 1, 1), VQConfig(), Grid(24, 24))
    return JanusPro(config).eval().requires_grad_(False)


def make_pictures(folder: Path, count: int, side: int) -> None:
    """Smooth colours with some grain, as photographs have: neither empty nor noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        size = (side, side * 3 // 4) if i % 2 else (side * 3 // 4, side)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
        pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
        grain = rng.integers(-12, 13, pixels.shape, np.int16)
        picture = Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{i:04}.jpg", quality=90)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of CPU time; the latter does not see that reading goes on while the
    encoder works, and does not mind what else the machine is doing."""
    started = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started[0], time.process_time() - started[1]


if __name__ == "__main__":
    main()
