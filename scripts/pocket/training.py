"""What both training scripts share: wall-clock schedule, optimiser, averaging, checkpoints, log."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

SAVE_SECONDS = 120


@dataclass(frozen=True)
class Team:
    """Processes of one thread each that train the same weights on different scenes.

    Small convolutions gain nothing from a second thread; a second process nearly doubles the rate.
    """

    rank: int = 0
    size: int = 1

    def mean(self, tensors: list[Tensor]) -> None:
        """Replace the tensors by their means over the team."""
        if self.size == 1:
            return
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.size).split([t.numel() for t in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def follow(self, *tensors: Tensor) -> None:
        """Replace the tensors by the first member's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def agree(self, value: float) -> float:
        """The first member's value."""
        shared = torch.tensor(value, dtype=torch.float64)
        self.follow(shared)
        return float(shared)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for the matrices inside a network.

    Convolution kernels are taken as matrices [out, in * kh * kw]. Updates are scaled to the size
    that Adam's have, so the learning rate is of Adam's kind (Liu et al., arXiv 2502.16982). The
    members of a team share out the work.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, team: Team, momentum: float = 0.95
    ) -> None:
        self.team = team
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.02})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            shapes = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for params in shapes.values():
                self._step_alike(params, group)

    def _step_alike(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Update parameters of one shape together."""
        updates = []
        for p in params:
            buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
            buffer.lerp_(p.grad, 1 - group["momentum"])
            updates.append(p.grad.lerp(buffer, group["momentum"]).flatten(1))
        update = self._orthogonalize(torch.stack(updates))
        scale = 0.2 * math.sqrt(max(update.shape[1:]))
        for p, u in zip(params, update, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.sub_(u.view(p.shape), alpha=group["lr"] * scale)

    def _orthogonalize(self, x: Tensor) -> Tensor:
        rank, size = self.team.rank, self.team.size
        out = torch.zeros_like(x)
        if rank < len(x):
            out[rank::size] = orthogonalize(x[rank::size])
        self.team.mean([out])
        return out * size


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is the faster: five times on a CPU with instructions for it, else much
    slower than float32."""
    if device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        return torch.float32
    return torch.bfloat16


def orthogonalize(x: Tensor, steps: int = 4) -> Tensor:
    """Nearest semi-orthogonal matrices to x [N, rows, columns], by a quintic Newton-Schulz.

    It bears bfloat16 well.
    """
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(fast_dtype(x.device))
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Average:
    """Exponential moving average of a model's weights, short-sighted at first."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 9))
        now = list(model.state_dict().values())
        torch._foreach_lerp_(list(self.weights.values()), now, 1 - decay)


class Budget:
    """Wall-clock budget that survives restarts: seconds trained so far of seconds allowed."""

    def __init__(self, minutes: float) -> None:
        self.allowed = minutes * 60
        self.before = 0.0
        self.start = time.monotonic()

    @property
    def elapsed(self) -> float:
        return self.before + time.monotonic() - self.start

    @property
    def progress(self) -> float:
        """Share of the budget used, 0..1; nothing is left of none."""
        return min(1.0, self.elapsed / self.allowed) if self.allowed else 1.0

    def resume(self, elapsed: float) -> None:
        self.before = elapsed
        self.start = time.monotonic()


def schedule(progress: float, warmup: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then cosine to zero."""
    if progress < warmup:
        return (progress + 0.1 * warmup) / (1.1 * warmup)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def run_team(workers: int, work: Callable[..., None], *args: Any) -> None:
    """Call `work(team, *args)` in `workers` processes."""
    if workers == 1:
        torch.set_num_threads(1)
        work(Team(), *args)
        return
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_join_team, (workers, f"file://{folder}/meeting", work, args), workers)


def _join_team(rank: int, size: int, meeting: str, work: Callable[..., None], args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", meeting, rank=rank, world_size=size)
    work(Team(rank, size), *args)
    dist.destroy_process_group()


class Log:
    """One JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, **values: Any) -> None:
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"time": time.strftime("%H:%M:%S"), **rounded}) + "\n")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that an interruption leaves the previous one whole."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def set_lr(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's learning rate to `factor` times the one it started with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])


def scaled(count: int, scale: float, least: int = 1) -> int:
    """A share of a number of things."""
    return max(least, round(count * scale))


class Trainer:
    """A model in training: its checkpoint, from which it goes on, its average and its log.

    Subclasses say what a step's loss is (`loss`) and how well the averaged weights do (`measure`).

    Args:
        name: Of WORK/NAME.pt and WORK/NAME.jsonl.
        inner: Matrices inside the network, which Muon trains; AdamW trains the rest.
        rates: Learning rates of the two.
        decay: Of the averaged weights.
    """

    def __init__(
        self,
        name: str,
        team: Team,
        args: argparse.Namespace,
        model: nn.Module,
        inner: Sequence[nn.Parameter],
        rates: tuple[float, float],
        decay: float,
    ) -> None:
        self.team, self.seed = team, args.seed
        self.device = next(model.parameters()).device
        self.path, self.log = args.work / f"{name}.pt", Log(args.work / f"{name}.jsonl")
        self.model = model
        known = {id(p) for p in inner}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        fused = self.device.type == "cuda"
        self.optimizers = [
            Muon(inner, rates[0], team),
            torch.optim.AdamW(rest, rates[1], betas=(0.9, 0.98), weight_decay=0.01, fused=fused),
        ]
        self.average = Average(model, decay)
        self.budget = Budget(args.minutes)
        self.steps = 0

    def loss(self, rng: np.random.Generator, progress: float) -> Tensor:
        """The loss of one step."""
        raise NotImplementedError

    def measure(self, last: bool) -> dict[str, float]:
        """What the log says of the averaged weights.

        Args:
            last: Training is over: take the time to measure well.
        """
        raise NotImplementedError

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        if not self.path.exists():
            return
        state = torch.load(self.path, self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.weights, self.average.steps = state["average"], state["steps"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.steps = state["steps"]
        self.budget.resume(state["elapsed"])

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.weights,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "steps": self.steps,
            "elapsed": self.budget.elapsed,
        }
        save(self.path, state)

    def step(self) -> Tensor:
        """One update; what it sees is a function of (seed, step, rank)."""
        progress = self.team.agree(self.budget.progress)
        set_lr(self.optimizers, schedule(progress))
        rng = np.random.default_rng((self.seed, self.steps, self.team.rank))
        loss = self.loss(rng, progress)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        self.team.mean([p.grad for p in self.model.parameters() if p.grad is not None])
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update(self.model)
        self.steps += 1
        return loss.detach()

    def report(self, loss: Tensor, last: bool = False) -> None:
        """Log how training goes, and save."""
        minutes = self.budget.elapsed / 60
        self.log(step=self.steps, minutes=minutes, loss=float(loss), **self.measure(last))
        self.save()

    def run(self) -> None:
        """Train until the budget is used up; only the first member reports."""
        self.budget.resume(self.budget.before)  # what came before was no training
        due = time.monotonic() + SAVE_SECONDS
        loss: Tensor | None = None
        while self.steps == 0 or self.team.agree(self.budget.progress) < 1:
            value = self.step()
            loss = value if loss is None else loss.lerp(value, 0.02)
            if self.team.rank == 0 and time.monotonic() > due:
                self.report(loss)
                due = time.monotonic() + SAVE_SECONDS
        if self.team.rank == 0 and loss is not None:
            self.report(loss, last=True)


def make_parser(description: str, minutes: float) -> argparse.ArgumentParser:
    """The command line that the training scripts share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and logs")
    parser.add_argument("--archives", type=Path, help="folder of the emoji packages (WORK/npm)")
    parser.add_argument("--minutes", type=float, default=minutes, help="wall-clock budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes, at most one a core")
    parser.add_argument("--scale", type=float, default=1.0, help="of numbers of pictures and steps")
    return parser


def add_device(parser: argparse.ArgumentParser, batch: int) -> None:
    """Where to train, and on how many scenes a step; for scripts that a GPU can run."""
    parser.add_argument("--device", default="cpu", help="cpu, or cuda with one worker")
    parser.add_argument("--batch", type=int, default=batch, help="scenes of a step and worker")


def parse_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The parsed command line, with its folders made."""
    args = parser.parse_args()
    args.archives = args.archives or args.work / "npm"
    args.work.mkdir(parents=True, exist_ok=True)
    return args
