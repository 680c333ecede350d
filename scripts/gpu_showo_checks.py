"""The checks of `check_gpu` for Show-o, which draws in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from arrag_engine.bounds import MAX_SEED
from arrag_engine.decode import Kept, KeptPasses, Recipe, draw_pictures
from arrag_engine.decode.masked_passes import FixedMasked, masked_shape
from arrag_engine.decode.step_noise import draw_by_sum, step_noise
from arrag_engine.index import PatchIndex, SourceTable, create_index
from arrag_engine.models.showo.model import ShowO
from arrag_engine.retrieval import device_index, layers_of, make_retriever, proposal_distribution
from arrag_engine.settings import RetrievalOptions, Sampling, Schedule
from scripts import gpu
from scripts.gpu_checks import Check, Checks, equal
from scripts.gpu_showo import AROUND, Showo, Uncached
from scripts.gpu_subjects import CPU, HALVES

SEEDS = (7, 8, MAX_SEED)
STEPS = 6
CODES, POSITIONS = 8192, 1024
"""Of Show-o at 512 px."""
PICTURES = 20
"""Drawn to see whether memory grows."""


@dataclass(frozen=True)
class Wish:
    """What is drawn."""

    sampling: Sampling
    weight: float | None = None
    """λ; None = no retrieval."""
    unknown: Literal["zero", "ignore"] = "zero"
    duplicates: Literal["first", "sum"] = "first"
    inpainted: bool = False


PLAIN = Wish(Sampling(cfg=3.0))
REPEATED = ("plain", "guidance 1", "top-k and top-p", "DAiD 0.5")
"""Drawn by one kept pass again and again."""
WISHES = {
    "plain": PLAIN,
    "guidance 1": Wish(Sampling(cfg=1.0, temperature=0.8)),
    "top-k and top-p": Wish(Sampling(cfg=3.0, top_k=40, top_p=0.9)),
    "temperature 0": Wish(Sampling(cfg=3.0, temperature=0)),
    "DAiD 0.5": replace(PLAIN, weight=0.5),
    "DAiD 1, ignored unknowns, sums": Wish(Sampling(cfg=3.0), 1.0, "ignore", "sum"),
    "inpainting": replace(PLAIN, inpainted=True),
    "inpainting, DAiD 0.5": replace(PLAIN, weight=0.5, inpainted=True),
}


@dataclass(frozen=True)
class Subject:
    """A model at one place, and an index that is searched there."""

    model: ShowO
    index: PatchIndex
    kept: Kept
    passes: KeptPasses | None = None
    """Passes of fixed shape; without them a CPU draws by its own passes."""

    def recipe(self, wish: Wish) -> Recipe:
        bare = Showo("tiny", self.model.config, STEPS, 1.0).recipe()
        retriever = None
        if wish.weight is not None:
            options = RetrievalOptions(wish.weight, 2.0, 9, wish.duplicates)
            codebook = self.model.vq.codebook(self.model.device)
            retriever = make_retriever(
                self.index, self.model.grid, codebook, options, unknown=wish.unknown
            )
        return replace(
            bare,
            sampling=wish.sampling,
            schedule=Schedule(STEPS),
            layers=layers_of(retriever),
            kept=self.kept if wish.inpainted else None,
        )

    def draw(self, wish: Wish, seeds: Sequence[int], model: Any = None) -> Tensor:
        """Tokens [B, N], by another model if one is given."""
        recipe = self.recipe(wish)
        return draw_pictures(model or self.model, recipe, seeds, kept=self.passes).tokens.flatten(1)


def tiny_subject(dtype: torch.dtype, device: torch.device, moved: bool = False) -> Subject:
    """A random model so loud that no two tokens are about equally probable.

    Args:
        moved: The index is searched on the device, and passes have a fixed shape there.
    """
    model = gpu.random_showo(gpu.TINY_SHOWO, torch.float32, CPU)
    gpu.randomise(model, 3, 0.3)
    model.phi.embed_tokens.weight.data.normal_(generator=gpu.seeded(CPU, 4))
    rng, size = np.random.default_rng(0), model.grid.size
    tokens = rng.integers(0, model.vocab, (20, size)).astype(np.uint16)
    sources = SourceTable.unknown(len(tokens))
    index = create_index(model.grid, tokens, None, model.vq.codebook(CPU), sources, AROUND, "bits")
    kept = Kept(tokens[:1].astype(np.int64), rng.random((1, size)) < 0.4)
    for part in model.drawing_parts:
        part.to(dtype)
    index = device_index(index, device) if moved else index
    return Subject(model.to(device), index, kept, gpu.kept() if moved else None)


def check_showo(device: torch.device) -> Checks:
    """Everything that is promised in float32."""
    host, there = tiny_subject(torch.float32, CPU), tiny_subject(torch.float32, device, True)
    for name, wish in WISHES.items():
        wanted, found = host.draw(wish, SEEDS), there.draw(wish, SEEDS)
        yield equal(f"Show-o, {name}, device = host", found, wanted)
        alone = torch.cat([there.draw(wish, [seed]) for seed in SEEDS])
        yield equal(f"Show-o, {name}, alone = in a batch", alone, found)
        yield equal(f"Show-o, {name}, twice", there.draw(wish, SEEDS), found)
        if wish.inpainted:
            yield stands(name, there.kept, found)
    plain = there.draw(PLAIN, SEEDS)
    yield equal("Show-o, DAiD 0 = plain", there.draw(replace(PLAIN, weight=0.0), SEEDS), plain)
    yield from check_captured(there)
    full = there.draw(PLAIN, SEEDS, Uncached(there.model))
    yield equal("Show-o, full pass a step = kept text", full, plain)
    yield check_pixels(host, there)
    if device.type == "cuda":
        yield check_memory(there)


def check_captured(there: Subject) -> Checks:
    """A captured pass draws what it draws uncaptured, and serves prompts of other lengths."""
    device, bare = there.model.device, replace(there, passes=gpu.kept(capture=False))
    for name in REPEATED:
        wish = WISHES[name]
        pairs = [(there.draw(wish, SEEDS), bare.draw(wish, SEEDS)) for _ in range(2)]
        error = equal("", *(torch.cat(drawn) for drawn in zip(*pairs, strict=True)))
        captured = was_captured(there, wish)
        said = f"{'captured' if captured else f'no graph on {device}'}, {error.said}"
        good = captured == (device.type == "cuda") and error.ok
        yield Check(f"Show-o, {name}, graph = no graph, twice", good, said)
    longer = replace(there.recipe(PLAIN), prompt=there.recipe(PLAIN).prompt[1:])
    drawn = [
        draw_pictures(there.model, longer, SEEDS, kept=one).tokens.flatten(1)
        for one in (there.passes, gpu.kept(capture=False))
    ]
    yield equal("Show-o, a prompt of another length, kept pass = new one", *drawn)


def was_captured(there: Subject, wish: Wish) -> bool:
    assert there.passes is not None
    shape = masked_shape(there.model, there.recipe(wish), len(SEEDS), there.model.device)
    return there.passes.find(FixedMasked, there.model, there.recipe(wish), shape).captured


def stands(name: str, kept: Kept, found: Tensor) -> Check:
    """Whether the tokens that were kept stand in pictures [B, N]."""
    [mask] = kept.mask
    wrong = int((found.numpy()[:, mask] != kept.tokens[0, mask]).sum())
    return Check(f"Show-o, {name}, kept tokens stand", wrong == 0, f"{wrong} do not")


@torch.inference_mode()
def check_pixels(host: Subject, there: Subject) -> Check:
    height, width = host.model.grid.height, host.model.grid.width
    codes = torch.from_numpy(host.index.tokens[:2].astype(np.int64)).view(-1, height, width)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        wanted, found = (
            one.model.vq.decode(codes.to(one.model.device)).cpu() for one in (host, there)
        )
    error = float((wanted - found).abs().max() / wanted.abs().max())
    said = f"largest difference {error:.1g} of the largest value"
    return Check("Show-o, pixels, device = host", error < 1e-3, said)


def check_memory(there: Subject) -> Check:
    """Drawings leave nothing behind."""
    held = []
    for seed in range(PICTURES):
        there.draw(WISHES["DAiD 0.5"], [seed])
        held.append(torch.cuda.memory_allocated(there.model.device))
    said = f"{held[1] / 1e6:.1f} MB after 2 pictures, {held[-1] / 1e6:.1f} after {PICTURES}"
    return Check("Show-o, memory does not grow", held[-1] <= held[1], said)


def check_draws(device: torch.device) -> Checks:
    """Draws and searches at the size of 512 px, given equal numbers."""
    rng, generator = np.random.default_rng(5), gpu.seeded(CPU, 5)
    p = torch.softmax(4 * torch.randn(POSITIONS, CODES, generator=generator), dim=-1)
    noise = step_noise(7, 0, POSITIONS).draw
    differ = int((draw_by_sum(p, noise) != draw_by_sum(p.to(device), noise)).sum())
    yield Check("Show-o, draws given equal p", differ == 0, f"{differ} of {POSITIONS} differ")
    make = partial(rng.choice, [-1.0, 1.0])
    config = replace(gpu.SHOWO_256, grid=gpu.TINY_SHOWO.grid)
    tokens = rng.integers(0, CODES, (300, config.grid.size)).astype(np.uint16)
    bits = np.arange(CODES)[:, None] >> np.arange(config.vq.bits)[::-1] & 1
    codebook = (2.0 * bits - 1).astype(np.float32)
    sources = SourceTable.unknown(len(tokens))
    index = create_index(config.grid, tokens, None, codebook, sources, AROUND, "bits")
    there = device_index(index, device)
    for name, absent in (("zero", 0.0), ("ignored", np.nan)):
        queries = make((300, AROUND.offsets, config.vq.bits)).astype(np.float32)
        queries[rng.random(queries.shape[:2]) < 0.5] = absent
        queries = queries.reshape(len(queries), -1)
        wanted, found = index.lookup(queries, 50), there.lookup(queries, 50)
        pairs = zip(wanted.fields, found.fields, strict=True)
        differ = sum(int((a != b).sum()) for a, b in pairs)
        said = f"{differ} of {4 * wanted.codes.size} numbers differ"
        yield Check(f"Show-o, search by bits, unknown {name}", differ == 0, said)
    options = RetrievalOptions(0.5, 2.0, 50)
    near = [proposal_distribution(wanted, options, CODES, d).cpu() for d in (CPU, device)]
    error = float((near[0] - near[1]).abs().max())
    yield Check("Show-o, p_retrieval", error < 1e-6, f"largest difference {error:.1g}")


def check_half(dtype: str, device: torch.device) -> Checks:
    """In 16 bit drawings run; how many pictures of a batch differ from those drawn alone is
    reported."""
    there = tiny_subject(HALVES[dtype], device, True)
    for name, wish in WISHES.items():
        batch = there.draw(wish, SEEDS)
        alone = torch.cat([there.draw(wish, [seed]) for seed in SEEDS])
        inside = bool(((batch >= 0) & (batch < there.model.vocab)).all())
        again = torch.equal(torch.cat([there.draw(wish, [seed]) for seed in SEEDS]), alone)
        said = f"{'the same' if again else 'others'} a second time; in a batch (reported): "
        said += equal("", batch, alone).said
        yield Check(f"Show-o, {dtype}, {name}", inside and again, said)
