"""Make a patch index of a database that the AR-RAG reference project published.

    python scripts/import_reference_index.py --index faiss_ivf_pq_opq.index \\
        --values next_codes.npy --model Janus-Pro-1B/ --out reference.safetensors --trust-this-file

It has to be read by faiss's own reader, which a crafted file can make do anything: hence the flag,
and hence this script stands outside the extension. Such a database holds neither pictures nor
sources, and of every key only a rounded form (product quantisation). What that stands for becomes
an index with the `ivf` structure like any other, 36 bytes a patch. Its recall is that of
finding these rounded keys.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from arrag_engine import shipped
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.cli.progress import Bars
from arrag_engine.errors import InputError
from arrag_engine.grid import BORDERS, NEIGHBORHOODS, Grid
from arrag_engine.index import KeySpec, PatchIndex, SourceTable, save_index
from arrag_engine.index.keys import Keys
from arrag_engine.index.search import build_searcher
from arrag_engine.paths import check_output


class DecodedKeys(Keys):
    """Keys read from a native index; patch i is its vector number i."""

    def __init__(
        self, native: Any, tokens: np.ndarray, codebook: np.ndarray, grid: Grid, spec: KeySpec
    ) -> None:
        super().__init__(tokens, None, codebook, grid, spec)
        self.native = native

    def rows(self, ids: np.ndarray) -> np.ndarray:
        found = self.native.reconstruct_batch(np.ravel(ids).astype(np.int64))
        return found.reshape(*np.shape(ids), self.dim)

    def of_images(self, first: int, last: int) -> np.ndarray:
        active = len(self.active)
        return self.native.reconstruct_n(first * active, (last - first) * active)


def read_native(path: Path, dim: int) -> Any:
    """A native index of L2 distances whose vectors are numbered from 0.

    Raises:
        InputError: Another kind of file or index.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        native = faiss.read_index(str(path))
        faiss.extract_index_ivf(native).make_direct_map()
    except (RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is no inverted-list index that faiss reads ({reason})") from error
    if native.d != dim or native.metric_type != faiss.METRIC_L2:
        raise InputError(
            f"{path} holds keys of {native.d} numbers, this model and neighbourhood make keys of "
            f"{dim}; choose the model it was built with"
        )
    return native


def read_values(path: Path, count: int, codes: int) -> np.ndarray:
    """What stood in the middle of each patch [count] uint16.

    Raises:
        InputError: Not that, or codes that the model does not have.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is no readable .npy file ({error})") from error
    if values.shape != (count,) or values.dtype.kind not in "iu":
        raise InputError(
            f"{path} holds {values.dtype} {values.shape}, expected {count} whole numbers: one for "
            "each vector of the index"
        )
    if count and not 0 <= values.min() <= values.max() < codes:
        raise InputError(f"{path} holds codes up to {values.max()}, the model has {codes}")
    return values.astype(np.uint16)


def to_grids(values: np.ndarray, grid: Grid, active: np.ndarray) -> np.ndarray:
    """Token grids [images, N], picture after picture as the reference adds them.

    Positions without a key are not in such a database; their tokens are 0, and never looked up.

    Raises:
        InputError: No whole number of pictures.
    """
    if len(values) == 0 or len(values) % len(active):
        raise InputError(
            f"{len(values)} patches are no whole number of pictures with {len(active)} patches "
            f"each on a {grid} grid; choose another --neighborhood or --borders"
        )
    tokens = np.zeros((len(values) // len(active), grid.size), np.uint16)
    tokens[:, active] = values.reshape(len(tokens), -1)
    return tokens


def convert(a: argparse.Namespace) -> PatchIndex:
    """The database as a patch index.

    Raises:
        InputError: It cannot be read, or does not fit the model.
    """
    if not a.trust_this_file:
        raise InputError(
            f"{a.index} can only be read by faiss's native reader, and a crafted file can make "
            "that do anything; if you know who made it, add --trust-this-file"
        )
    model = load_checkpoint(shipped.resolve(a.model, shipped.MODELS), torch.float32).model
    grid, codebook = model.config.grid, model.vq.codebook(torch.device("cpu"))
    spec = KeySpec(a.neighborhood, a.borders, "encoder")
    native = read_native(a.index, spec.dim(codebook.shape[1]))
    values = read_values(a.values, native.ntotal, len(codebook))
    tokens = to_grids(values, grid, spec.active(grid))
    keys = DecodedKeys(native, tokens, codebook, grid, spec)
    with Bars() as bars:
        searcher = build_searcher(keys, "ivf", a.recall_target, partial(bars, "patch"))
    sources = SourceTable.unknown(len(tokens))
    return PatchIndex(grid, tokens, None, codebook, sources, spec, searcher)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--index", type=Path, required=True, help="faiss_ivf_pq_opq.index")
    add("--values", type=Path, required=True, help="next_codes.npy")
    add("--model", required=True, help="the model whose VQ it was built with")
    add("--out", type=Path, required=True, help="index file to write (.safetensors)")
    add("--neighborhood", choices=NEIGHBORHOODS, default="causal-4")
    add("--borders", choices=BORDERS, default="skip")
    add("--recall-target", type=float, default=0.95, help="share of the nearest 64 to be found")
    add("--trust-this-file", action="store_true", help="read it with faiss's native reader")
    a = parser.parse_args(argv)
    try:
        out = check_output(a.out, ".safetensors")
        index = convert(a)
        save_index(index, out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {index.size} patches, recall {index.recall:.3f} of the keys as they were kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
