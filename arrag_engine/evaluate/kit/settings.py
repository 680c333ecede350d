"""Bits of held-out pictures by λ, τ, K and keys, and what drawings at several λ copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch

from ...checkpoints import Checkpoint
from ...decode import Recipe
from ...decode.masked import look_up, mixed, of_tokens
from ...index import KeySpec, PatchIndex
from ...layers import KeyChoice, Layer
from ...likelihood import masked_probabilities, model_probabilities
from ...models.base import MaskedBackbone
from ...recommended import recommended
from ...retrieval import Layers, Retriever, make_retriever, proposal_distribution, suited
from ...settings import RetrievalOptions, Sampling
from ..benchmark import Progress
from ..journal import Journal
from ..listed import Way
from ..measures import bootstrap_interval, copied_share
from ..run import draw_tokens
from .effort import Effort
from .material import HeldOut, Material, usable_caption

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
class Drawn:
    """A drawing."""

    prompt: str
    label: str
    """What it was drawn with."""
    tokens: np.ndarray
    """[N]."""


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
            for keys in self.rekeyed
            for tau in effort.taus
            for k in effort.neighbours
            for weight in effort.weights
        ]

    @cached_property
    def rekeyed(self) -> dict[str, PatchIndex]:
        """The index with the keys of each neighbourhood that some place of the grid has."""
        model = self.checkpoint.model
        specs = {name: self.spec(name) for name in self.effort.neighborhoods(model.order)}
        there = {name: spec for name, spec in specs.items() if len(spec.active(model.grid))}
        rekeyed = {name: self.index.rekeyed(spec) for name, spec in there.items()}
        if model.order.raster:
            return rekeyed
        return {name: index.by_bits() for name, index in rekeyed.items()}

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
        model, index = self.checkpoint.model, self.rekeyed[neighborhood]
        base = suited(recommended(self.checkpoint).retrieval, index)
        options = replace(base, weight=1.0, temperature=tau, neighbours=k)
        return make_retriever(index, model.grid, self.codebook, options, order=model.order)

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
        model, prompt = cast(MaskedBackbone, self.checkpoint.model), self._prompt(picture)
        recipe = Recipe(prompt.ids, prompt.unconditional, Sampling(1.0))
        order = np.random.default_rng(0).permutation(model.grid.size)
        masks = [order < round(share * model.grid.size) for share in SHARES]
        canvas, alone = masked_probabilities(model, recipe, picture.tokens, masks)

        def of_all(ps: Sequence[torch.Tensor]) -> np.ndarray:
            parts = [of_tokens(p[0], canvas.tokens)[~m] for p, m in zip(ps, masks, strict=True)]
            return np.concatenate(parts).astype(np.float64)

        widest = {
            name: self._retriever(name, 1.0, max(self.effort.neighbours)) for name in self.rekeyed
        }
        hits = {
            name: [look_up(Layers((one,)), [canvas], mask[None]) for mask in masks]
            for name, one in widest.items()
        }

        def proposed(name: str, tau: float, k: int) -> np.ndarray:
            options = replace(widest[name].options, temperature=tau, neighbours=k)
            layers = Layers((widest[name].using(options),))  # takes the k nearest of the hits
            pairs = zip(alone, hits[name], strict=True)
            return of_all([mixed(p, layers, looked_up) for p, looked_up in pairs])

        return of_all(alone), proposed

    def _prompt(self, picture: HeldOut) -> Any:
        """Of its caption; of a word that says little where there is no usable one."""
        caption = usable_caption(self.checkpoint, picture.caption)
        return self.checkpoint.prompt_encoder.encode(caption or "a picture")


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
        progress("held-out picture", number, len(material.held_out), "")
        key = ("bits", number)
        rows.append(journal.once(key, lambda picture=picture: bits.of(picture)))
    progress("held-out picture", len(rows), len(rows), "")
    table = np.array(rows)  # [pictures, 1 + settings]
    described = [{"alone": True}, *(asdict(one) for one in bits.settings)]
    found = [
        facts | {"bits": round(float(column.mean()), 4), "interval": _interval(column)}
        for facts, column in zip(described, table.T, strict=True)
    ]
    return [found[0], *sorted(found[1:], key=lambda row: row["bits"])]


def _interval(values: np.ndarray) -> list[float]:
    return [round(value, 4) for value in bootstrap_interval(values[:, None])]


def best_of(rows: Sequence[Mapping[str, Any]]) -> Setting:
    """The setting with the least bits, of rows as `measure_bits` returns them."""
    return Setting(**{field.name: rows[1][field.name] for field in fields(Setting)})


def layer_of(checkpoint: Checkpoint, index: PatchIndex, setting: Setting) -> Layer:
    """A layer of all pictures, as for the bits, with a setting; the rest is recommended."""
    advised = recommended(checkpoint).keys
    keys = KeyChoice(setting.neighborhood, advised.borders, advised.space, advised.position_weight)
    values = {"temperature": setting.temperature, "neighbours": setting.neighbours}
    return Layer(index, only="", keys=keys, weight=setting.weight, **values)


def variants(
    best: Setting, effort: Effort, neighborhoods: Sequence[str]
) -> dict[str, Setting | None]:
    """What is drawn, by what to call it: the model alone; the best keys, τ and K at several λ; at
    the last λ but one, the least and the largest of each of the others."""
    found: dict[str, Setting | None] = {"the model alone": None}
    for weight in effort.drawn_weights:
        found[f"λ {weight:g}"] = replace(best, weight=weight)
    middle = replace(best, weight=effort.drawn_weights[-2:][0])
    names = {"temperature": "τ", "neighbours": "K", "neighborhood": "keys"}
    values = {
        "temperature": effort.taus,
        "neighbours": effort.neighbours,
        "neighborhood": neighborhoods,
    }
    for field, short in names.items():
        for value in dict.fromkeys((values[field][0], values[field][-1])):
            if value != getattr(middle, field):
                label = f"λ {middle.weight:g}, {short} {value}"
                found[label] = replace(middle, **{field: value})
    return found


def draw_variants(
    way: Way,
    index: PatchIndex,
    wanted: Mapping[str, Setting | None],
    prompts: Sequence[str],
    journal: Journal,
    progress: Progress,
) -> list[Drawn]:
    """Every prompt drawn with every variant and the same seed."""
    drawn, total = [], len(prompts) * len(wanted)
    for number, prompt in enumerate(prompts):
        for label, setting in wanted.items():
            progress("drawing", len(drawn), total, label)

            def work(prompt: str = prompt, setting: Setting | None = setting) -> list[int]:
                layers = [] if setting is None else [layer_of(way.checkpoint, index, setting)]
                planned = replace(way, layers=layers).plan(prompt, "daid")
                return draw_tokens(way.checkpoint, planned, [0])[0].tolist()

            tokens = journal.once(("drawing", number, label), work)
            drawn.append(Drawn(prompt, label, np.array(tokens, np.int64)))
    progress("drawing", total, total, "")
    return drawn


def drawing_table(drawn: Sequence[Drawn], index: PatchIndex) -> list[dict[str, Any]]:
    """By variant: the share of tokens equal to the nearest picture of the index, and the share that
    differs from the model alone."""
    alone: dict[str, np.ndarray] = {}
    rows: dict[str, list[tuple[float, float]]] = {}
    for one in drawn:
        own = alone.setdefault(one.prompt, one.tokens)  # the model alone is drawn first
        shares = copied_share(one.tokens, index), float((one.tokens != own).mean())
        rows.setdefault(one.label, []).append(shares)
    table = []
    for label, shares in rows.items():
        copied, changed = (round(float(share), 4) for share in np.mean(shares, axis=0))
        table.append({"drawn": label, "copied": copied, "changed": changed})
    return table
