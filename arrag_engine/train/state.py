"""A training run on disk: its settings, data, log and state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoints.weights import open_weights
from ..errors import InputError
from ..faid import FaidAdapter
from ..files import atomic_write, write_text
from .data import Examples

RESULTS = ("base_held_out_bits", "held_out_bits", "base_own_bits", "own_bits")
NOTHING: Mapping[str, Any] = {}
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class RunFolder:
    """The files of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.settings = self.folder / "settings.json"
        self.state = self.folder / "state.safetensors"
        self.best = self.folder / "best.safetensors"
        self.examples = self.folder / "examples.safetensors"
        self.own = self.folder / "own.safetensors"
        self.log = self.folder / "log.jsonl"
        self.curve = self.folder / "loss.png"

    def check(self, facts: dict[str, Any], earlier: Mapping[str, Any] = NOTHING) -> None:
        """Make sure that a run in the folder, if any, was begun with the same facts.

        Args:
            earlier: Values of facts that folders of earlier releases lack.

        Raises:
            InputError: It was begun with others.
        """
        if not self.settings.is_file():
            return
        try:
            former = {**earlier, **json.loads(self.settings.read_text(encoding="utf-8"))}
        except ValueError:
            former = {}
        for name in sorted(facts.keys() | former.keys()):
            if former.get(name) != facts.get(name):
                raise InputError(
                    f"the run in {self.folder} was begun with {name} {former.get(name)!r}, not "
                    f"{facts.get(name)!r}; use the same value, or choose another --work folder"
                )

    def begin(self, facts: dict[str, Any], earlier: Mapping[str, Any] = NOTHING) -> None:
        """Make the folder and write the facts, unless it is there.

        Raises:
            InputError: As `check`, or it cannot be written.
        """
        self.check(facts, earlier)
        if self.settings.is_file():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make {self.folder}: {error.strerror}; choose another folder"
            ) from error
        write_text(self.settings, json.dumps(facts, indent=1))

    def save_examples(self, examples: Examples) -> None:
        _write_examples(examples, self.examples)

    def load_examples(self) -> Examples:
        """What `save_examples` wrote."""
        return _read_examples(self.examples)

    def save_own(self, own: Examples) -> None:
        _write_examples(own, self.own)

    def load_own(self) -> Examples | None:
        """What `save_own` wrote, if it did."""
        return _read_examples(self.own) if self.own.is_file() else None

    def save_state(
        self, step: int, adapter: FaidAdapter, optimizer: torch.optim.Optimizer, measured: bool
    ) -> None:
        """Write the state after `step` updates; the former state stays until it is complete.

        Args:
            measured: Whether the measurement of this step is done.

        Raises:
            InputError: The disk is full.
        """
        tensors: dict[str, Tensor] = {}
        for name, parameter in adapter.named_parameters():
            tensors[f"weight.{name}"] = parameter.detach()
            for moment in MOMENTS:
                tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
        facts = {"step": str(step), "measured": str(int(measured))}
        with atomic_write(self.state) as temporary:
            on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            save_file(on_cpu, temporary, facts)

    def load_state(
        self, adapter: FaidAdapter, optimizer: torch.optim.Optimizer
    ) -> tuple[int, bool]:
        """Load the state; returns the updates done, 0 for a new run, and whether the measurement of
        that step is done.

        Raises:
            InputError: The state is damaged.
        """
        if not self.state.is_file():
            return 0, False
        weights = open_weights([self.state])
        try:
            for name, parameter in adapter.named_parameters():
                with torch.no_grad():
                    parameter.copy_(weights.read(f"weight.{name}"))
                optimizer.state[parameter] = {
                    moment: _beside(weights.read(f"{moment}.{name}"), parameter, moment)
                    for moment in MOMENTS
                }
            return int(weights.metadata["step"]), weights.metadata.get("measured", "1") == "1"
        except (KeyError, RuntimeError, ValueError) as error:
            raise self._damaged(self.state, error) from error

    def save_best(self, step: int, adapter: FaidAdapter, results: Mapping[str, float]) -> None:
        """Save these weights as the best so far, with their measurement."""
        on_cpu = {n: p.detach().cpu().contiguous() for n, p in adapter.named_parameters()}
        facts = {"step": str(step), "results": json.dumps(dict(results))}
        with atomic_write(self.best) as temporary:
            save_file(on_cpu, temporary, facts)

    def best_results(self) -> dict[str, float] | None:
        """The measurement of the best weights so far; None when there are none."""
        if not self.best.is_file():
            return None
        return json.loads(open_weights([self.best]).metadata["results"])

    def load_best(self, adapter: FaidAdapter) -> None:
        """Give an adapter the best weights.

        Raises:
            InputError: They are damaged.
        """
        weights = open_weights([self.best])
        try:
            with torch.no_grad():
                for name, parameter in adapter.named_parameters():
                    parameter.copy_(weights.read(name))
        except (KeyError, RuntimeError) as error:
            raise self._damaged(self.best, error) from error

    def _damaged(self, path: Path, error: Exception) -> InputError:
        return InputError(f"{path} is damaged ({error}); delete {self.folder} and train again")

    def saved_step(self) -> int:
        """Updates that the saved state stands for, 0 when there is none."""
        return _step_of(self.state)

    def best_step(self) -> int:
        """The same of the best weights."""
        return _step_of(self.best)

    def cut_log(self, step: int) -> list[dict[str, Any]]:
        """Drop the lines logged after `step` updates; returns the rest."""
        lines = []
        if self.log.is_file():
            lines = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        kept = [line for line in lines if line["step"] <= step]
        write_text(self.log, "".join(json.dumps(line) + "\n" for line in kept))
        return kept

    def results(self) -> dict[str, float]:
        """The measurement of the base, and of the adapter where it was best or else last, in bits a
        token."""
        best = self.best_step()
        found: dict[str, float] = {}
        for line in self.log.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            if not best or values["step"] <= best:
                found |= {key: values[key] for key in RESULTS if key in values}
        return found | ({"best_step": best} if best else {})

    def add_to_log(self, line: dict[str, Any]) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _step_of(path: Path) -> int:
    return int(open_weights([path]).metadata["step"]) if path.is_file() else 0


def _write_examples(examples: Examples, path: Path) -> None:
    arrays = {
        "tokens": examples.tokens,
        "digests": examples.digests,
        "codes": examples.codes,
        "active": examples.active,
        "captions": np.frombuffer(json.dumps(examples.captions).encode(), np.uint8),
    }
    with atomic_write(path) as temporary:
        save_arrays(arrays, temporary)


def _read_examples(path: Path) -> Examples:
    arrays = load_arrays(path)
    names = ("tokens", "digests", "codes", "active")
    tokens, digests, codes, active = (arrays[name] for name in names)
    captions = json.loads(arrays["captions"].tobytes())
    return Examples(tokens, captions, digests, codes, active)


def _beside(tensor: Tensor, parameter: Tensor, moment: str) -> Tensor:
    """A moment where AdamW keeps it: with its parameter, but for the count of steps."""
    return tensor.clone() if moment == "step" else tensor.to(parameter.device, copy=True)
