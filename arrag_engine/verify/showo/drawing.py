"""Checks of masked drawing, step by step, with the golden files' noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ...decode import Recipe
from ...decode.canvas import begin
from ...decode.masked import (
    confidence,
    draw_unknown,
    gumbel,
    look_up,
    masked_count,
    masked_share,
    mixed,
    stays,
    temperature_of,
)
from ...decode.masked_passes import predict
from ...decode.step_noise import StepNoise, draw_by_sum
from ...models.showo.model import ShowO
from ...retrieval import Layers
from ...sampling import guide
from ...settings import Sampling, Schedule
from ..golden import EXACT, LOGITS, PIXELS, Golden, Values
from .fixture import CFG_LOGITS, PROBS, ShowOFixture, level_values

CONFIDENCES, SHARES = 5e-4, 1e-6
KNOWN = np.finfo(np.float32).max
"""The probability that a known token counts as."""


def schedule_of(settings: dict[str, Any]) -> Schedule:
    """The engine's schedule of a setting of the official program."""
    curve, told = settings["mask_schedule"], settings.get("mask_schedule_params") or {}
    steps, temperature = settings["timesteps"], settings["temperature"]
    if curve.startswith("pow"):
        return Schedule(steps, temperature, "pow", float(curve.removeprefix("pow")))
    names = zip(("start", "end", "tau"), Schedule.sigmoid, strict=True)
    start, end, tau = (float(told.get(name, default)) for name, default in names)
    return Schedule(steps, temperature, curve, sigmoid=(start, end, tau))


@dataclass
class Recorded:
    """What a drawing did, step by step: lists of what one step gave, for one picture."""

    values: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, **values: Any) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append(torch.as_tensor(value))

    def stacked(self) -> dict[str, Tensor]:
        return {name: torch.stack(rows) for name, rows in self.values.items()}


class Listening:
    """A model that keeps the last logits it gave."""

    def __init__(self, model: ShowO) -> None:
        self.model, self.logits = model, torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def masked_logits(self, opened: Any, tokens: Tensor, known: Tensor, hook: Any = None) -> Tensor:
        self.logits = self.model.masked_logits(opened, tokens, known, hook)
        return self.logits


class GoldenDrawing:
    """One picture of a setting, drawn by the engine's steps with the noise of the golden file."""

    def __init__(
        self,
        fixture: ShowOFixture,
        golden: Golden,
        name: str,
        settings: dict[str, Any],
        number: int,
    ) -> None:
        self.fixture, self.golden, self.name, self.number = fixture, golden, name, number
        words = fixture.words[settings["prompts"][number]]
        greedy = settings.get("greedy", False)
        sampling = Sampling(1 + settings["guidance_scale"], 0 if greedy else 1)
        prompt, blank = fixture.ids(words), fixture.ids([])
        self.recipe = Recipe(
            fixture.padded(prompt), fixture.padded(blank), sampling, schedule=schedule_of(settings)
        )
        self.streams = [self.recipe.prompt, self.recipe.unconditional][: 1 + (sampling.cfg != 1)]
        self.canvas = begin(0, fixture.grid.size)
        self.known = np.zeros((1, fixture.grid.size), bool)
        if settings.get("inpaint", False):
            given = golden[f"{name}.given_image_tokens"].long()[number].numpy()
            known = self.known[0] = given != fixture.vocabulary.mask
            self.canvas.tokens[known] = given[known] - fixture.vocabulary.first_code

    def run(self, layers: Layers) -> dict[str, Tensor]:
        """What each step gave [S, ...], and the tokens in the end."""
        model, recorded = Listening(self.fixture.model), Recorded()
        prompts = torch.tensor(self.streams)
        opened = [(len(prompts), model.open(prompts))]
        for step in range(self.recipe.schedule.steps):
            tokens = torch.from_numpy(self.canvas.tokens).expand(len(prompts), -1)
            stand = torch.from_numpy(self.known).expand(len(prompts), -1)
            recorded.add(input_ids=self.fixture.sequences(prompts, tokens, stand))
            p_model = predict(
                cast(ShowO, model), opened, self.recipe, [self.canvas], self.known, model.device
            )
            logits = guide(model.logits, self.recipe.sampling.cfg)[0]
            recorded.add(logits_cond=model.logits[0], logits_cfg=logits)
            recorded.add(logits_uncond=model.logits[-1])
            p = mixed(p_model, layers, look_up(layers, [self.canvas], self.known))[0]
            if layers:
                self.record_found(layers, recorded)
            self.step(step, p, recorded)
        return recorded.stacked() | {"tokens": torch.from_numpy(self.canvas.tokens)}

    def record_found(self, layers: Layers, recorded: Recorded) -> None:
        """What the only layer found where it was asked: each code once, with its nearest hit."""
        self.canvas.recall()
        [layer], known = layers.each, self.known[0]
        active = layers.informed(known) & ~known
        codes = np.full((known.size, layer.neighbours), -1)
        distances = np.full((known.size, layer.neighbours), -1.0)
        for position in np.flatnonzero(active):
            [proposal] = self.canvas.proposals[int(position)]
            assert proposal is not None
            found, first = np.unique(proposal.hits.codes[0], return_index=True)
            first = np.sort(first)
            codes[position, : len(found)] = proposal.hits.codes[0, first]
            distances[position, : len(found)] = proposal.hits.distances[0, first]
        recorded.add(active=active, retr_codes=codes, retr_distances=distances)

    def step(self, step: int, p: Tensor, recorded: Recorded) -> None:
        noise, schedule, known = self.noise(step), self.recipe.schedule, self.known[0]
        draws = p.argmax(-1) if noise is None else draw_by_sum(p, noise.draw)
        drawn = draw_unknown(self.canvas, p, known, noise)
        chosen = np.where(known, KNOWN, drawn)
        temperature = temperature_of(schedule, step)
        sure = confidence(chosen, noise, temperature)
        count = masked_count(schedule, step, known.size, int((~known).sum()))
        after = stays(drawn, known, schedule, step, noise)
        ranked = np.sort(sure)
        recorded.add(
            draws=draws,
            sampled_ids=self.canvas.tokens.copy(),
            selected_probs=chosen,
            p_merged=p,
            mask_ratio=masked_share(schedule, step),
            temperature=temperature,
            mask_len=count,
            confidence=sure,
            confidence_margin=ranked[count] - ranked[count - 1],
            masked_after=~after,
        )
        if noise is not None:
            recorded.add(gumbel=gumbel(noise.keep))
        self.known[0] = after

    def noise(self, step: int) -> StepNoise | None:
        if self.recipe.sampling.greedy:
            return None
        draw, keep = (
            self.golden[f"{self.name}.{kind}"][step, self.number].double().numpy()
            for kind in ("draw_uniform", "mask_uniform")
        )
        return StepNoise(draw, keep)


STEP_LIMITS = {
    "input_ids": EXACT,
    "logits_cond": LOGITS,
    "logits_uncond": LOGITS,
    "logits_cfg": CFG_LOGITS,
    "draws": EXACT,
    "sampled_ids": EXACT,
    "selected_probs": PROBS,
    "mask_ratio": SHARES,
    "temperature": SHARES,
    "mask_len": EXACT,
    "gumbel": PROBS,
    "confidence": CONFIDENCES,
    "confidence_margin": CONFIDENCES,
    "masked_after": EXACT,
    "tokens": EXACT,
}
ONE_FOR_ALL = ("mask_ratio", "temperature")
"""What does not depend on the picture."""


def check_t2i(fixture: ShowOFixture, golden: Golden) -> Values:
    for name, settings in fixture.settings["t2i"].items():
        drawings = [
            GoldenDrawing(fixture, golden, name, settings, i).run(Layers(()))
            for i in range(len(settings["prompts"]))
        ]
        for value, limit in STEP_LIMITS.items():
            if f"{name}.{value}" in golden and value in drawings[0]:
                yield f"{name}.{value}", limit, together(value, drawings)
        grid = fixture.grid
        tokens = together("tokens", drawings).view(-1, grid.height, grid.width)
        decoded = fixture.model.vq.decode(tokens)
        if f"{name}.decoded" in golden:
            yield f"{name}.decoded", PIXELS, decoded
        yield from level_values(f"{name}.image_u8", golden, decoded)


def together(name: str, drawings: Sequence[dict[str, Tensor]]) -> Tensor:
    """A value of all pictures, as the golden file has it: steps, then pictures."""
    rows = [drawing[name] for drawing in drawings]
    if name in ONE_FOR_ALL:
        return rows[0]
    if name == "tokens":
        return torch.stack(rows)
    if name == "input_ids":  # [S, streams, L] of each picture: the conditional streams come first
        return torch.stack(rows, dim=2).flatten(1, 2)
    return torch.stack(rows, dim=1)
