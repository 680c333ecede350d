"""The training loop: updates, measurements, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint import Checkpoint
from ..errors import InputError
from ..faid import FaidAdapter
from .begin import new_adapter
from .curve import draw_curve
from .data import Batches, Examples
from .loss import Learner, base_losses
from .settings import TrainSettings
from .state import RunFolder
from .team import Team

MEASURED = 256
"""Held-out pictures that a measurement looks at, at most."""

Report = Callable[[int, int, float], None]
"""Called after every update with (updates done, updates in all, loss in bits a token)."""


@dataclass(frozen=True)
class Place:
    """Where and how a run computes; the result depends on it only by rounding."""

    device: torch.device
    autocast: bool = False
    """Compute in bfloat16 where PyTorch deems it safe."""
    checkpointing: bool = False
    """Work layers out again for the gradient: slower, less memory."""

    def precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)


def train_adapter(
    base: Checkpoint,
    examples: Examples,
    settings: TrainSettings,
    run: RunFolder,
    place: Place,
    team: Team | None = None,
    report: Report | None = None,
) -> FaidAdapter:
    """Train an adapter for a base whose weights stay as they are, or go on where `run` stopped.

    Raises:
        InputError: The loss is no longer a number, too few pictures, or the disk is full; the last
            checkpoint in `run` is always a good one.
    """
    team = team or Team()
    trainer = Trainer(base, examples, settings, run, place, team)
    trainer.resume()
    while trainer.step < settings.steps:
        bits = trainer.update()
        if report is not None:
            report(trainer.step, settings.steps, bits)
        if trainer.step % settings.every == 0 or trainer.step == settings.steps:
            trainer.measure_and_save()
    return trainer.adapter.eval().requires_grad_(False)


class Trainer:
    """One run."""

    def __init__(
        self,
        base: Checkpoint,
        examples: Examples,
        settings: TrainSettings,
        run: RunFolder,
        place: Place,
        team: Team,
    ) -> None:
        self.settings, self.run, self.place, self.team = settings, run, place, team
        train, held_out = examples.split(settings.held_out)
        self.batches = Batches(train, base.prompt_encoder, settings)
        measured = held_out.take(np.arange(min(len(held_out), MEASURED)))
        self.held_out = Batches(measured, base.prompt_encoder, settings)
        self.adapter = new_adapter(base.model, settings, self.batches).to(place.device).train()
        active = torch.from_numpy(examples.active).to(place.device)
        learner = Learner(base.model, self.adapter, settings, active, place.checkpointing)
        self.learner: nn.Module = learner
        if team.size > 1:
            devices = [place.device] if place.device.type == "cuda" else None
            self.learner = DistributedDataParallel(learner, devices)
        self.alone = learner
        self.base = base
        self.optimizer = make_optimizer(self.adapter, settings)
        self.step = 0
        self.log: list[dict[str, Any]] = []

    def resume(self) -> None:
        """Take up what the run's folder holds; a new run begins with a measurement."""
        self.step = self.run.load_state(self.adapter, self.optimizer)
        if not self.team.leads:
            return
        self.log = self.run.cut_log(self.step)
        if not self.log and len(self.held_out.examples):
            base = bits_of(base_scorer(self.base), self.held_out, self.settings, self.place).mean()
            self.note({"step": 0, "base_held_out_bits": float(base)} | self.measured())

    def note(self, line: dict[str, Any]) -> None:
        """Log something, if this is the process that talks."""
        if self.team.leads:
            self.log.append(line)
            self.run.add_to_log(line)

    def update(self) -> float:
        """One update of the weights; returns the loss in bits a token.

        Raises:
            InputError: The gradient is not finite. The weights are as before.
        """
        s, team = self.settings, self.team
        [dropout_seed] = np.random.SeedSequence((s.seed, self.step, team.rank)).generate_state(1)
        torch.manual_seed(int(dropout_seed))
        rate = s.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.learner.train()
        self.optimizer.zero_grad()
        total = 0.0
        for part in range(s.accumulation):
            number = (self.step * s.accumulation + part) * team.size + team.rank
            batch = self.batches.training(number * s.batch, s.batch, self.place.device)
            together = part == s.accumulation - 1 or team.size == 1
            with nullcontext() if together else self.learner.no_sync():  # type: ignore[operator]
                with self.place.precision():
                    loss = self.learner(batch).mean() / s.accumulation
                loss.backward()
            total += loss.item()
        norm = nn.utils.clip_grad_norm_(self.adapter.parameters(), s.clip)
        if not torch.isfinite(norm):  # the same in all processes
            raise self.not_a_number()
        self.optimizer.step()
        self.step += 1
        bits = total / math.log(2)
        self.note({"step": self.step, "bits": bits, "lr": rate, "gradient": float(norm)})
        return bits

    def not_a_number(self) -> InputError:
        saved = self.run.saved_step()
        kept = f"the last good checkpoint, of step {saved}, is in {self.run.folder}"
        return InputError(
            f"the loss is not a number at step {self.step + 1}; "
            f"{kept if saved else 'there is no checkpoint yet'}; lower --lr {self.settings.lr:g}"
        )

    def measured(self) -> dict[str, float]:
        """The held-out loss, if anything is held out."""
        if len(self.held_out.examples) == 0:
            return {}
        bits = bits_of(self.alone, self.held_out, self.settings, self.place).mean()
        return {"held_out_bits": float(bits)}

    def measure_and_save(self) -> None:
        """Log the held-out loss, write a checkpoint and the curve; only good weights are kept."""
        results = self.team.told(self.measured() if self.team.leads else None)
        if not all(math.isfinite(value) for value in results.values()):
            raise self.not_a_number()
        if self.team.leads:
            if results:
                self.note({"step": self.step} | results)
            self.run.save_state(self.step, self.adapter, self.optimizer)
            draw_curve(self.log, self.run.curve)
        self.team.wait()


def make_optimizer(adapter: FaidAdapter, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW; blenders and their norms, which begin from nothing, may learn faster than the rest."""
    new, changed = [], []
    for name, parameter in adapter.named_parameters():
        (new if "blender" in name or "retrieval_layernorm" in name else changed).append(parameter)
    groups = [{"params": new, "factor": settings.blender_lr}, {"params": changed, "factor": 1.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        settings.lr,
        weight_decay=settings.weight_decay,
    )


def base_scorer(base: Checkpoint) -> Callable[..., Any]:
    """The losses of the base alone, as `Learner` gives them."""
    return lambda batch: base_losses(base.model, batch)


@torch.no_grad()
def bits_of(
    scorer: Callable[..., Any], batches: Batches, settings: TrainSettings, place: Place
) -> np.ndarray:
    """Bits of each picture's tokens [M, N], captions and candidates as they are."""
    if isinstance(scorer, nn.Module):
        scorer.eval()
    bits = []
    rows = np.arange(len(batches.examples))
    for first in range(0, len(rows), settings.batch):
        batch = batches.plain(rows[first : first + settings.batch], place.device)
        with place.precision():
            bits.append(scorer(batch).float().cpu().numpy() / math.log(2))
    return np.concatenate(bits)


def score(
    base: Checkpoint,
    adapter: FaidAdapter | None,
    examples: Examples,
    settings: TrainSettings,
    place: Place,
) -> np.ndarray:
    """Teacher-forced loss of every picture's tokens [M, N] in bits, of the base alone or with an
    adapter, folded or not."""
    batches = Batches(examples, base.prompt_encoder, settings)
    if adapter is None:
        return bits_of(base_scorer(base), batches, settings, place)
    active = torch.from_numpy(examples.active).to(place.device)
    return bits_of(Learner(base.model, adapter, settings, active), batches, settings, place)
