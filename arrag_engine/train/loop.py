"""The training loop: updates, measurements, checkpoints."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoints import Checkpoint
from ..errors import InputError
from ..faid import FaidAdapter
from ..index import PatchIndex
from .begin import new_adapter
from .curve import draw_curve
from .data import Batches, Examples
from .loss import Learner, base_losses
from .masking import masks_for
from .rehearsal import MEASURED_OWN
from .settings import TrainSettings
from .state import RunFolder
from .team import Team

MEASURED = 256
"""Largest number of held-out pictures in a measurement."""

KEEPING = 200.0
"""Weight of the loss of the base's own pictures. New pictures cost many bits a token at
first and would outweigh them in the gradient until most is forgotten; few pictures restore it."""
BOUND = 0.05
"""Bits a token that the base's own pictures may cost more than under the base alone."""

Report = Callable[[int, int, float], None]
"""Called after every update with (updates done, updates in all, loss in bits a token)."""
Warn = Callable[[str], None]
"""Called with a sentence for the user."""


@dataclass(frozen=True)
class Place:
    """Device and precision of a run; they change the result only by rounding."""

    device: torch.device
    autocast: bool = False
    """Compute in bfloat16 where PyTorch's autocast does."""
    checkpointing: bool = False
    """Compute layers again for the gradient: slower, less memory."""

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
    own: Examples | None = None,
    warn: Warn | None = None,
    index: PatchIndex | None = None,
) -> FaidAdapter:
    """Train an adapter for a base whose weights stay as they are, or go on where `run` stopped.

    Args:
        own: Pictures that the base drew itself (`draw_own`): mixed in, so that it keeps drawing
            them. With them the adapter of the best measurement is returned (`better`), without them
            the last.
        warn: Called once when the own pictures cost `BOUND` more than under the base alone.
        index: To retrieve from, for a base that draws in any order: its masks change, and with them
            what is retrieved. What is retrieved in raster order stands in the examples.

    Raises:
        InputError: The loss is no longer a number, too few pictures, or the disk is full; the last
            checkpoint in `run` is always a good one.
        KeyboardInterrupt: It was interrupted; `run` holds all updates done.
    """
    team = team or Team()
    trainer = Trainer(base, examples, settings, run, place, team, own, warn, index)
    trainer.resume()
    try:
        while trainer.due or trainer.step < settings.steps:
            if trainer.due:
                trainer.measure_and_save()
                continue
            bits = trainer.update()
            if report is not None:
                report(trainer.step, settings.steps, bits)
    except KeyboardInterrupt:
        trainer.save_interrupted()
        raise
    if own is not None:
        run.load_best(trainer.adapter)
    return trainer.adapter.eval().requires_grad_(False)


def better(one: Mapping[str, float], other: Mapping[str, float], base_own: float) -> bool:
    """Whether a measurement is at least as good as an earlier one.

    One whose own pictures cost at most `BOUND` more than under the base is better than one that
    forgets; of two that do not forget, the one with the lower held-out loss; of two that do, the
    one that forgets less.
    """

    def rank(results: Mapping[str, float]) -> tuple[bool, float]:
        forgets = results["own_bits"] > base_own + BOUND
        return forgets, results["own_bits"] if forgets else results.get("held_out_bits", 0.0)

    return rank(one) <= rank(other)


class Trainer:
    """The state of one run, and its steps."""

    def __init__(
        self,
        base: Checkpoint,
        examples: Examples,
        settings: TrainSettings,
        run: RunFolder,
        place: Place,
        team: Team,
        own: Examples | None = None,
        warn: Warn | None = None,
        index: PatchIndex | None = None,
    ) -> None:
        self.settings, self.run, self.place, self.team = settings, run, place, team
        self.warn = warn
        train, held_out = examples.split(settings.held_out)
        encoder = base.prompt_encoder
        masks = masks_for(base, index, settings)
        rehearsed = own and own.take(np.arange(MEASURED_OWN, len(own)))
        self.batches = Batches(train, encoder, settings, rehearsed, masks)
        self.measured_sets: dict[str, Batches] = {}
        if len(held_out):
            first = held_out.take(np.arange(min(len(held_out), MEASURED)))
            self.measured_sets["held_out_bits"] = Batches(first, encoder, settings, masks=masks)
        if own is not None:
            kept = own.take(np.arange(MEASURED_OWN))
            self.measured_sets["own_bits"] = Batches(kept, encoder, settings, masks=masks)
        self.adapter = new_adapter(base.model, settings, self.batches).to(place.device).train()
        learner = Learner(base.model, self.adapter, settings, place.checkpointing)
        self.learner: nn.Module = learner
        if team.size > 1:
            devices = [place.device] if place.device.type == "cuda" else None
            self.learner = DistributedDataParallel(learner, devices)
        self.alone = learner
        self.base = base
        self.optimizer = make_optimizer(self.adapter, settings)
        self.step = 0
        self.measured_step = 0
        self.log: list[dict[str, Any]] = []

    def resume(self) -> None:
        """Load the state in the run's folder; a new run begins with a measurement."""
        self.step, measured = self.run.load_state(self.adapter, self.optimizer)
        self.measured_step = self.step if measured else 0
        if not self.team.leads:
            return
        self.log = self.run.cut_log(self.step)
        if not self.log and self.measured_sets:
            base = self.measure(base_scorer(self.base))
            first = {f"base_{name}": bits for name, bits in base.items()}
            self.note({"step": 0} | first | self.measure(self.alone))

    @property
    def due(self) -> bool:
        """Whether a measurement and a checkpoint come next."""
        at_measurement = self.step % self.settings.every == 0 or self.step == self.settings.steps
        return at_measurement and self.step != self.measured_step

    def note(self, line: dict[str, Any]) -> None:
        """Log a line, in the leading process only."""
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
                    losses = self.learner(batch).mean(dim=1)
                    weighted = losses * (1 + (KEEPING - 1) * batch.own)
                (weighted.mean() / s.accumulation).backward()
            total += losses.mean().item() / s.accumulation
        norm = nn.utils.clip_grad_norm_(self.adapter.parameters(), s.clip)
        if not torch.isfinite(norm):  # equal in all processes
            raise self.not_a_number()
        bits = total / math.log(2)
        with undisturbed():
            self.optimizer.step()
            self.step += 1
            self.note({"step": self.step, "bits": bits, "lr": rate, "gradient": float(norm)})
        return bits

    def not_a_number(self) -> InputError:
        saved = self.run.saved_step()
        kept = f"the last good checkpoint, of step {saved}, is in {self.run.folder}"
        return InputError(
            f"the loss is not a number at step {self.step + 1}; "
            f"{kept if saved else 'there is no checkpoint yet'}; lower --lr {self.settings.lr:g}"
        )

    def measure(self, scorer: Callable[..., Any]) -> dict[str, float]:
        """Mean loss of what is held out and of the base's own pictures, in bits a token."""
        return {
            name: float(bits_of(scorer, batches, self.settings, self.place).mean())
            for name, batches in self.measured_sets.items()
        }

    def measure_and_save(self) -> None:
        """Log the losses, write a checkpoint and the curve; only good weights are kept."""
        results = self.team.from_leader(self.measure(self.alone) if self.team.leads else None)
        if not all(math.isfinite(value) for value in results.values()):
            raise self.not_a_number()
        with undisturbed():
            if self.team.leads:
                self.keep(results)
            self.measured_step = self.step
        self.team.wait()

    def keep(self, results: dict[str, float]) -> None:
        """Save a measurement and its weights."""
        if results:
            self.note({"step": self.step} | results)
        if "own_bits" in results:
            self.compare(results)
        self.run.save_state(self.step, self.adapter, self.optimizer, measured=True)
        draw_curve(self.log, self.run.curve)

    def compare(self, results: dict[str, float]) -> None:
        """Keep the weights if they are the best so far; warn if they are the first to forget."""
        base_own = self.log[0]["base_own_bits"]
        best = self.run.best_results()
        if best is None or better(results, best, base_own):
            self.run.save_best(self.step, self.adapter, results)
        forgetting = [
            line["step"] for line in self.log if line.get("own_bits", 0) > base_own + BOUND
        ]
        if self.warn is not None and forgetting == [self.step]:
            self.warn(
                f"at step {self.step} the pictures that the model draws itself cost "
                f"{results['own_bits']:.3f} bits a token, {base_own:.3f} before the training, "
                f"more than the {BOUND:g} allowed: it forgets what it knew; choose a higher "
                f"--rehearse than {self.settings.rehearse:g}, or a lower --lr than "
                f"{self.settings.lr:g}"
            )

    def save_interrupted(self) -> None:
        """Write a checkpoint of the updates done since the last one."""
        if self.team.leads and self.step > self.run.saved_step():
            with undisturbed():
                self.run.save_state(self.step, self.adapter, self.optimizer, measured=False)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Delay Ctrl-C until the block is done: a run could not resume from half a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    former = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
    if caught:
        raise KeyboardInterrupt


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
    index: PatchIndex | None = None,
) -> np.ndarray:
    """Teacher-forced loss of every picture's tokens [M, N] in bits, of the base alone or with an
    adapter, folded or not. Where tokens are masked, the mean of a picture is that of the unknown
    ones, and the known ones are 0.

    Args:
        index: As in `train_adapter`.
    """
    masks = masks_for(base, index, settings)
    batches = Batches(examples, base.prompt_encoder, settings, masks=masks)
    if adapter is None:
        return bits_of(base_scorer(base), batches, settings, place)
    return bits_of(Learner(base.model, adapter, settings), batches, settings, place)
