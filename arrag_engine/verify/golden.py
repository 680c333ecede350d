"""A folder of golden numbers, and comparing with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..checkpoints import open_checkpoint, read_model
from ..checkpoints.weights import open_weights, read_json
from ..decode import Recipe, draw_pictures
from ..errors import InputError
from ..faid import Faid
from ..grid import Grid
from ..index import KeySpec, PatchIndex, SourceTable, create_index
from ..models.janus.model import JanusPro
from ..models.janus.prompt import unconditional
from ..models.pixels import to_uint8
from ..retrieval import Retriever, layers_of
from ..settings import Sampling

EXACT, LOGITS, CFG_LOGITS, PROBS, VECTORS, PIXELS, LEVELS = 0, 1e-4, 5e-4, 5e-5, 2e-5, 1e-4, 1
NEEDED_SETTINGS = ("grid_width", "pad_id", "cfg_weight", "probs_temperatures", "daid")


@dataclass(frozen=True)
class Check:
    """One comparison with a golden tensor."""

    name: str
    status: str
    """ok, FAILED or skipped."""
    error: float = 0.0
    limit: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        if self.status == "skipped":
            return f"skipped  {self.name}  ({self.reason})"
        return f"{self.status:<7}  {self.name}  error {self.error:.3g}  limit {self.limit:g}"


def compare(
    label: str, golden: Golden, name: str, value: Any, limit: float, wanted: Tensor | None = None
) -> Check:
    """Worst absolute difference of `value` from `wanted`, or else from the golden tensor `name`."""
    if wanted is None and name not in golden:
        return Check(label, "skipped", reason="not in the fixture")
    wanted = (golden[name] if wanted is None else wanted).double()
    found = torch.as_tensor(value).detach().cpu().double().reshape(-1)
    if found.numel() != wanted.numel():
        return Check(label, "FAILED", float("inf"), limit)
    error = float((found - wanted.reshape(-1)).abs().max()) if found.numel() else 0.0
    return Check(label, "ok" if error <= limit else "FAILED", error, limit)


class Golden:
    """The golden tensors of one group."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weights = open_weights([path])

    def __contains__(self, name: str) -> bool:
        return name in self.weights.shapes

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise InputError(f"{self.path} lacks the tensor {name}, which its checks need")
        return self.weights.sources[name].read()


class Fixture:
    """A folder of golden numbers: settings, model, and the tensors of each group."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = read_json(folder / "settings.json")
        missing = [key for key in NEEDED_SETTINGS if key not in self.settings]
        if missing:
            raise InputError(f"{folder / 'settings.json'} lacks {', '.join(missing)}")
        side = self.settings["grid_width"]
        self.grid = Grid(side, side)

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}.safetensors").is_file()

    def golden(self, group: str) -> Golden:
        return Golden(self.folder / f"{group}.safetensors")

    @cached_property
    def model(self) -> JanusPro:
        """The vanilla model in float32; what configs leave out stands in the settings."""
        opened = open_checkpoint(self.folder, self.grid)
        known = {k: self.settings[k] for k in ("rope_theta", "rms_norm_eps") if k in self.settings}
        llama = replace(opened.janus.llama, **known)
        sizes = replace(opened.janus, llama=llama)
        return cast(JanusPro, read_model(replace(opened, sizes=sizes), torch.float32))

    @cached_property
    def codebook(self) -> np.ndarray:
        return self.model.vq.codebook(torch.device("cpu"))

    def sampling(self, temperature: float) -> Sampling:
        return Sampling(self.settings["cfg_weight"], temperature, argmax=True)

    def decode(self, tokens: Tensor) -> Tensor:
        """Pixels [1, 3, H, W] of a path of tokens [N]."""
        return self.model.vq.decode(tokens.long().view(1, self.grid.height, self.grid.width))


Values = Iterator[tuple[str, float, Any] | tuple[str, float, Any, Tensor]]
"""(golden tensor's name, limit, our value), and what is wanted if no tensor of the file tells."""


def golden_index(golden: Golden, name: str, codebook: np.ndarray) -> PatchIndex:
    codes = golden[f"{name}.indices"].numpy()
    side = round(codes.shape[1] ** 0.5)
    vectors = golden[f"{name}.vectors"].numpy()
    sources = SourceTable.unknown(len(codes))
    tokens = codes.astype(np.uint16)
    return create_index(Grid(side, side), tokens, vectors, codebook, sources, KeySpec())


def greedy_values(
    name: str,
    fixture: Fixture,
    prompt: Tensor,
    sampling: Sampling,
    retriever: Retriever | None = None,
    faid: Faid | None = None,
) -> Values:
    ids = prompt.tolist()
    blank = unconditional(ids, fixture.settings["pad_id"])
    recipe = Recipe(ids, blank, sampling, layers_of(retriever), faid)
    drawing = draw_pictures(fixture.model, recipe, [0])
    yield f"{name}.tokens", EXACT, drawing.tokens
    if retriever is not None and retriever.options.weighs:
        yield f"{name}.active", EXACT, drawing.traces[0].weight > 0
    yield f"{name}.image_u8", LEVELS, to_uint8(fixture.decode(drawing.tokens))


def padded(rows: np.ndarray, k: int) -> np.ndarray:
    """Rows [P, K] widened to k columns of -1, when the database holds fewer than k patches."""
    return np.pad(rows, ((0, 0), (0, k - rows.shape[1])), constant_values=-1)


def scatter_rows(rows: np.ndarray, positions: np.ndarray, size: int, fill: float) -> np.ndarray:
    """Rows [P, ...] put at their positions [P] among `size` rows of `fill`."""
    out = np.full((size, rows.shape[1]), fill, dtype=np.float64)
    out[positions] = rows
    return out
