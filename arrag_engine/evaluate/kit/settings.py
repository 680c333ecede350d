"""Bits of held-out pictures by λ, τ, K and keys, and what drawings at several λ copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ...checkpoints import Checkpoint
from ...decode import Recipe
from ...decode.canvas import begin
from ...decode.masked import mixed, of_tokens, open_prompts, predict
from ...index import KeySpec, PatchIndex
from ...layers import KeyChoice, Layer
from ...likelihood import model_probabilities
from ...recommended import recommended
from ...retrieval import Layers, Retriever, make_retriever, proposal_distribution
from ...settings import RetrievalOptions, Sampling
from ..benchmark import Progress
from ..journal import Journal
from ..listed import Way
from ..measures import bootstrap_interval, copied_share
from ..run import draw_tokens
from .effort import Effort
from .material import HeldOut, Material

SHARES = (0.25, 0.5, 0.75)
"""Of the tokens that are known where the order is any."""
LEAST = 1e-12
"""A token that a method holds for impossible costs 40 bits."""


@dataclass(frozen=True)
class Setting:
    """Values of retrieval."""

    neighborhood: str
    temperature: float
    neighbours: int
    weight: float


@dataclass(frozen=True)
class Bits:
    """Measures bits of held-out pictures."""

    checkpoint: Checkpoint
    index: PatchIndex
    effort: Effort

    @cached_property
    def codebook(self) -> np.ndarray:
        model = self.checkpoint.model
        return model.vq.codebook(model.device)

    @cached_property
    def settings(self) -> list[Setting]:
        """All that are compared."""
        effort = self.effort
        return [
            Setting(keys, tau, k, weight)
            for keys in effort.neighborhoods(self.checkpoint.model.order)
            for tau in effort.taus
            for k in effort.neighbours
            for weight in effort.weights
        ]

    @cached_property
    def rekeyed(self) -> dict[str, PatchIndex]:
        """The index with the keys of each neighbourhood."""
        names = self.effort.neighborhoods(self.checkpoint.model.order)
        return {name: self.index.rekeyed(self.spec(name)) for name in names}

    def spec(self, neighborhood: str) -> KeySpec:
        """The recommended keys, with another neighbourhood."""
        return replace(recommended(self.checkpoint).keys, neighborhood=neighborhood)

    def of(self, picture: HeldOut) -> list[float]:
        """Mean bits a token: of the model alone, then of every setting."""
        raster = self.checkpoint.model.order.raster
        own, proposed = self._raster(picture) if raster else self._masked(picture)
        found, last, p_one = [_bits(own)], None, own
        for one in self.settings:
            kind = (one.neighborhood, one.temperature, one.neighbours)
            if kind != last:
                last, p_one = kind, proposed(*kind)
            found.append(_bits((1 - one.weight) * own + one.weight * p_one))
        return found

    def _retriever(self, neighborhood: str, tau: float, k: int) -> Retriever:
        """One that proposes alone, λ = 1."""
        base = recommended(self.checkpoint).retrieval
        options = replace(base, weight=1.0, temperature=tau, neighbours=k)
        model, index = self.checkpoint.model, self.rekeyed[neighborhood]
        return make_retriever(index, model.grid, self.codebook, options)

    def _raster(self, picture: HeldOut) -> tuple[np.ndarray, Callable[..., np.ndarray]]:
        """(p_model [N] of a picture's tokens, what gives p_retrieval, or p_model where nothing is
        found)."""
        tokens = picture.tokens
        prompt = self._prompt(picture)
        p = model_probabilities(
            self.checkpoint.janus, prompt.ids, prompt.unconditional, tokens
        ).double()
        own = p[torch.arange(len(tokens)), torch.from_numpy(tokens)].numpy()
        widest = max(self.effort.neighbours)
        hits = {}
        for name in self.rekeyed:
            retriever = self._retriever(name, 1.0, widest)
            positions = np.flatnonzero(retriever.active)
            hits[name] = positions, retriever.lookup(tokens, positions, widest)

        def proposed(name: str, tau: float, k: int) -> np.ndarray:
            positions, found = hits[name]
            found = found.nearest(k)
            options = RetrievalOptions(1.0, tau, k)
            p = proposal_distribution(found, options, self.checkpoint.model.vocab)
            mine = p[torch.arange(len(positions)), torch.from_numpy(tokens[positions])].double()
            result = own.copy()
            there = found.found().any(axis=1)
            result[positions[there]] = mine.numpy()[there]
            return result

        return own, proposed

    def _masked(self, picture: HeldOut) -> tuple[np.ndarray, Callable[..., np.ndarray]]:
        """The same, of the tokens that are unknown when a quarter, a half and three quarters are
        known."""
        model, prompt = self.checkpoint.model, self._prompt(picture)
        recipe = Recipe(prompt.ids, prompt.unconditional, Sampling(1.0))
        opened, canvas = open_prompts(model, recipe, model.device), begin(0, model.grid.size)  # pyright: ignore
        canvas.tokens[:] = picture.tokens
        order = np.random.default_rng(0).permutation(model.grid.size)
        masks = [order < round(share * model.grid.size) for share in SHARES]
        alone = [
            predict(model, opened, recipe, [canvas], mask[None], model.device).cpu()  # pyright: ignore
            for mask in masks
        ]

        def of_all(ps: Sequence[torch.Tensor]) -> np.ndarray:
            parts = [of_tokens(p[0], canvas.tokens)[~m] for p, m in zip(ps, masks, strict=True)]
            return np.concatenate(parts).astype(np.float64)

        def proposed(name: str, tau: float, k: int) -> np.ndarray:
            layers = Layers((self._retriever(name, tau, k),))
            pairs = zip(alone, masks, strict=True)
            return of_all([mixed(p, layers, [canvas], mask[None]) for p, mask in pairs])

        return of_all(alone), proposed

    def _prompt(self, picture: HeldOut) -> Any:
        """Of its caption; of a word that says little where there is none."""
        encoder = self.checkpoint.prompt_encoder
        return encoder.encode(picture.caption.strip() or "a picture")


def _bits(p: np.ndarray) -> float:
    return round(float(-np.log2(np.maximum(p, LEAST)).mean()), 5)


@torch.inference_mode()
def measure_bits(
    checkpoint: Checkpoint,
    material: Material,
    effort: Effort,
    journal: Journal,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Bits a token of the held-out pictures: the model alone, then all settings, the best first."""
    bits, rows = Bits(checkpoint, material.index, effort), []
    for number, picture in enumerate(material.held_out):
        progress("held-out picture", number, len(material.held_out))
        key = ("bits", number)
        rows.append(journal.once(key, lambda picture=picture: bits.of(picture)))
    progress("held-out picture", len(rows), len(rows))
    table = np.array(rows)  # [pictures, 1 + settings]
    described = [{"alone": True}, *(asdict(one) for one in bits.settings)]
    found = [
        facts | {"bits": round(float(column.mean()), 4), "interval": _interval(column)}
        for facts, column in zip(described, table.T, strict=True)
    ]
    return [found[0], *sorted(found[1:], key=lambda row: row["bits"])]


def _interval(values: np.ndarray) -> list[float]:
    return [round(value, 4) for value in bootstrap_interval(values[:, None])]


def best_layer(
    checkpoint: Checkpoint, index: PatchIndex, best: dict[str, Any], weight: float
) -> Layer:
    """A layer with the best keys, τ and K, and a weight."""
    advised = recommended(checkpoint).keys
    keys = KeyChoice(best["neighborhood"], advised.borders, advised.space, advised.position_weight)
    values = {name: best[name] for name in ("temperature", "neighbours")}
    return Layer(index, keys=keys, weight=weight, **values)


def draw_ladder(
    checkpoint: Checkpoint,
    index: PatchIndex,
    best: dict[str, Any],
    prompts: Sequence[str],
    effort: Effort,
    journal: Journal,
    progress: Progress,
    place: Any = None,
) -> Iterator[tuple[str, float, np.ndarray]]:
    """(prompt, λ, tokens [N]) of each prompt drawn at each λ with the same seed; λ 0 is the model
    alone."""
    weights = (0.0, *effort.drawn_weights)
    done, total = 0, len(prompts) * len(weights)
    for number, prompt in enumerate(prompts):
        for weight in weights:
            progress("drawing", done, total, f"λ {weight:g}")

            def work(prompt: str = prompt, weight: float = weight) -> list[int]:
                layers = [] if weight == 0 else [best_layer(checkpoint, index, best, weight)]
                planned = Way(checkpoint, layers, place=place).plan(prompt, "daid")
                return draw_tokens(checkpoint, planned, [0])[0].tolist()

            tokens = journal.once(("drawing", number, weight), work)
            done += 1
            yield prompt, weight, np.array(tokens, np.int64)
    progress("drawing", total, total)


def ladder_table(
    drawn: Sequence[tuple[str, float, np.ndarray]], index: PatchIndex
) -> list[dict[str, float]]:
    """By λ: the share of tokens equal to the nearest picture of the index, and the share that
    differs from the model alone."""
    alone = {prompt: tokens for prompt, weight, tokens in drawn if weight == 0}
    rows: dict[float, list[tuple[float, float]]] = {}
    for prompt, weight, tokens in drawn:
        changed = float((tokens != alone[prompt]).mean())
        rows.setdefault(weight, []).append((copied_share(tokens, index), changed))
    return [
        {
            "weight": weight,
            "copied": round(float(np.mean([c for c, _ in found])), 4),
            "changed": round(float(np.mean([c for _, c in found])), 4),
        }
        for weight, found in rows.items()
    ]
