"""Checks of the engine against golden numbers of the reference programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checkpoint import open_checkpoint, read_model
from .daid import Retrieval, RetrievalOptions, mix, proposal_distribution
from .decode import draw_pictures
from .errors import InputError
from .grid import Grid
from .index import KeySpec, Neighbors, PatchIndex
from .index.keys import index_keys
from .janus import JanusPro
from .retriever import Retriever
from .sampling import Sampling, guide, model_distribution
from .vq import to_uint8
from .weights import open_weights, read_json

EXACT, LOGITS, CFG_LOGITS, PROBS, VECTORS, PIXELS, LEVELS = 0, 1e-4, 5e-4, 5e-5, 2e-5, 1e-4, 1
NEEDED_SETTINGS = ("grid_width", "pad_id", "cfg_weight", "probs_temperatures", "daid")
NEEDED_FILES = {"vq": ["model"], "vanilla": ["model"], "db": [], "daid": ["model", "db", "vanilla"]}
"""What a group's checks stand on, besides its own file."""
FAID_PARTS = (
    "step",
    "stepzero",
    "noretrieval",
    "train",
    "train2",
    "greedy",
    "blender_unit",
    "loss",
    "gradient_norms",
)


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


def verify_folder(folder: Path) -> Iterator[Check]:
    """Run every check that the files in `folder` allow.

    Raises:
        InputError: There is no such folder, or its settings or model cannot be read.
    """
    if not Path(folder).is_dir():
        raise InputError(f"there is no folder {folder}")
    fixture = Fixture(Path(folder))
    groups = {"vq": check_vq, "vanilla": check_vanilla, "db": check_db, "daid": check_daid}
    for group, run in groups.items():
        if missing := [name for name in (group, *NEEDED_FILES[group]) if not fixture.has(name)]:
            reason = f"there is no {missing[0]}.safetensors"
            yield Check(f"{group}.*", "skipped", reason=reason)
            continue
        golden = fixture.golden(group)
        with torch.inference_mode():
            checks = [
                compare(f"{group}.{n}", golden, n, v, lim) for n, lim, v in run(fixture, golden)
            ]
        yield from checks
    for part in FAID_PARTS:
        yield Check(f"faid.{part}", "skipped", reason="FAiD is not built yet")


def compare(label: str, golden: Golden, name: str, value: Any, limit: float) -> Check:
    """Worst absolute difference of `value` from the golden tensor `name`."""
    if name not in golden:
        return Check(label, "skipped", reason="not in the fixture")
    wanted = golden[name].double()
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
        return self.weights.readers[name]()


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
        return read_model(replace(opened, janus=replace(opened.janus, llama=llama)), torch.float32)

    @cached_property
    def codebook(self) -> np.ndarray:
        return self.model.vq.codebook(torch.device("cpu"))

    def sampling(self, temperature: float) -> Sampling:
        return Sampling(self.settings["cfg_weight"], temperature, argmax=True)

    def decode(self, tokens: Tensor) -> Tensor:
        """Pixels [1, 3, H, W] of a path of tokens [N]."""
        return self.model.vq.decode(tokens.long().view(1, self.grid.height, self.grid.width))


Values = Iterator[tuple[str, float, Any]]
"""(golden tensor's name, limit, our value)."""


def check_vq(fixture: Fixture, golden: Golden) -> Values:
    vq = fixture.model.vq
    z = vq.quant_conv(vq.encoder(golden["images"]))
    codes, vectors = vq.encode(golden["images"])
    yield "z_pre_quant", LOGITS, z
    yield "z_normed", VECTORS, vectors
    yield "indices", EXACT, codes
    yield "z_quantised", VECTORS, vq.quantize(codes).permute(0, 3, 1, 2)
    yield "decoded", PIXELS, vq.decode(codes)


def check_vanilla(fixture: Fixture, golden: Golden) -> Values:
    model, cfg = fixture.model, fixture.settings["cfg_weight"]
    ids = torch.stack((golden["prompt_ids_cond"], golden["prompt_ids_uncond"])).long()
    path = golden["forced_tokens"].long()
    text, image = model.embed_text(ids), model.embed_codes(path[:-1])
    yield "prompt_embeds", LOGITS, text
    yield "image_embeds", LOGITS, image
    hidden, logits = forced_pass(model, text, image)
    for row, stream in enumerate(("cond", "uncond")):
        yield f"hidden_{stream}", LOGITS, hidden[row]
        yield f"logits_{stream}", LOGITS, logits[row]
    guided = guide(logits, cfg)[0]
    yield "logits_cfg", CFG_LOGITS, guided
    for t in fixture.settings["probs_temperatures"]:
        yield f"probs_t{t}", PROBS, model_distribution(guided, Sampling(cfg, t))
    decoded = fixture.decode(path)
    yield "forced_decoded", PIXELS, decoded
    yield "forced_image_u8", LEVELS, to_uint8(decoded)
    yield from greedy_values("greedy", fixture, golden["prompt_ids_cond"], fixture.sampling(1.0))


def forced_pass(model: JanusPro, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and logits [streams, N, .] at the predicting positions, fed step by step."""
    streams, length, _ = text.shape
    total = length + len(image)
    cache = model.new_cache(streams, total, text.device)
    hidden = [model.llama(text, None, cache)[:, -1:]]
    for i, x in enumerate(image.expand(streams, -1, -1).split(1, dim=1)):
        hidden.append(model.llama(x, [length + i] * streams, cache))
    states = torch.cat(hidden, dim=1)
    return states, model.gen_head(states)


def greedy_values(
    name: str,
    fixture: Fixture,
    prompt: Tensor,
    sampling: Sampling,
    retrieval: Retrieval | None = None,
) -> Values:
    drawing = draw_pictures(
        fixture.model, prompt.tolist(), fixture.settings["pad_id"], sampling, [0], retrieval
    )
    yield f"{name}.tokens", EXACT, drawing.tokens
    if retrieval is not None:
        yield f"{name}.active", EXACT, drawing.traces[0].weight > 0
    yield f"{name}.image_u8", LEVELS, to_uint8(fixture.decode(drawing.tokens))


def check_db(fixture: Fixture, golden: Golden) -> Values:
    for name in ("grid", "grid24"):
        if f"{name}.vectors" not in golden:
            continue
        index = golden_index(golden, name, np.empty((0, 0), np.float32))
        assert index.vectors is not None
        yield f"{name}.keys", EXACT, index_keys(index.vectors, index.grid, index.spec)
        yield f"{name}.values", EXACT, index.tokens[:, index.active].astype(np.int64)


def golden_index(golden: Golden, name: str, codebook: np.ndarray) -> PatchIndex:
    codes = golden[f"{name}.indices"].numpy()
    side = round(codes.shape[1] ** 0.5)
    vectors = golden[f"{name}.vectors"].numpy()
    return PatchIndex(Grid(side, side), codes.astype(np.uint16), vectors, codebook, [], KeySpec())


def check_daid(fixture: Fixture, golden: Golden) -> Values:
    db, vanilla = fixture.golden("db"), fixture.golden("vanilla")
    k = fixture.settings["daid"]["top_k"]
    index = golden_index(db, "grid", fixture.codebook)
    retriever = Retriever(index, fixture.grid, fixture.codebook)
    path = vanilla["forced_tokens"].long().numpy()
    active = np.flatnonzero(retriever.active)
    queries = retriever.queries(path, active)
    neighbors = index.search(queries, k)
    yield "a.forced.active", EXACT, retriever.active
    yield "a.forced.query", VECTORS, scatter_rows(queries, active, len(path), 0)
    for name, limit, rows in (
        ("neighbour_ids", EXACT, neighbors.ids),
        ("distances", PROBS, neighbors.distances),
        ("codes", EXACT, neighbors.codes),
    ):
        yield f"a.forced.{name}", limit, scatter_rows(padded(rows, k), active, len(path), -1)
    yield from unique_values(neighbors, active, len(path), k)
    ids = torch.stack((vanilla["prompt_ids_cond"], vanilla["prompt_ids_uncond"])).long()
    model = fixture.model
    image = model.embed_codes(torch.from_numpy(path)[:-1])
    guided = guide(
        forced_pass(model, model.embed_text(ids), image)[1], fixture.settings["cfg_weight"]
    )
    for name, s in fixture.settings["daid"]["settings"].items():
        options = RetrievalOptions(s["retrieval_ratio"], s["retrieval_temperature"], k)
        sampling = fixture.sampling(s["temperature"])
        p_model = model_distribution(guided[0], sampling)
        p_retr = torch.zeros_like(p_model)
        p_retr[active] = proposal_distribution(neighbors, options, p_model.shape[1])
        p_merged = p_model.clone()
        p_merged[active] = mix(p_model[active], p_retr[active], options.weight)
        yield f"{name}.forced.p_model", PROBS, p_model
        yield f"{name}.forced.p_retr", PROBS, p_retr
        yield f"{name}.forced.p_merged", PROBS, p_merged
        yield from greedy_values(
            f"{name}.greedy",
            fixture,
            vanilla["prompt_ids_cond"],
            sampling,
            Retrieval(retriever, options),
        )


def unique_values(neighbors: Neighbors, active: np.ndarray, size: int, k: int) -> Values:
    """Each row's codes and distances after keeping every code's nearest occurrence only."""
    codes = np.full((size, k), -1)
    distances = np.full((size, k), -1.0)
    counts = np.zeros(size)
    for position, row_codes, row in zip(active, neighbors.codes, neighbors.distances, strict=True):
        first = np.sort(np.unique(row_codes, return_index=True)[1])
        codes[position, : len(first)] = row_codes[first]
        distances[position, : len(first)] = row[first]
        counts[position] = len(first)
    yield "a.forced.unique_codes", EXACT, codes
    yield "a.forced.unique_distances", PROBS, distances
    yield "a.forced.unique_count", EXACT, counts


def padded(rows: np.ndarray, k: int) -> np.ndarray:
    """Rows [P, K] widened to k columns of -1, when the database holds fewer than k patches."""
    return np.pad(rows, ((0, 0), (0, k - rows.shape[1])), constant_values=-1)


def scatter_rows(rows: np.ndarray, positions: np.ndarray, size: int, fill: float) -> np.ndarray:
    """Rows [P, ...] put at their positions [P] among `size` rows of `fill`."""
    out = np.full((size, rows.shape[1]), fill, dtype=np.float64)
    out[positions] = rows
    return out
