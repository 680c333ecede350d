"""A training run on disk: its settings, its data, its log, and where it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError
from ..faid import FaidAdapter
from ..files import atomic_write
from ..weights import open_weights
from .data import Examples

RESULTS = ("base_held_out_bits", "held_out_bits")
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class RunFolder:
    """The files of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.state = self.folder / "state.safetensors"
        self.examples = self.folder / "examples.safetensors"
        self.log = self.folder / "log.jsonl"
        self.curve = self.folder / "loss.png"

    def begin(self, facts: dict[str, Any]) -> None:
        """Make the folder, or make sure that what it holds was begun with the same facts.

        Raises:
            InputError: It was not, or it cannot be written.
        """
        path = self.folder / "settings.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make {self.folder}: {error.strerror}; choose another folder"
            ) from error
        if path.is_file():
            try:
                former = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                former = {}
            for name in sorted(facts.keys() | former.keys()):
                if former.get(name) != facts.get(name):
                    raise InputError(
                        f"the run in {self.folder} was begun with {name} {former.get(name)!r}, not "
                        f"{facts.get(name)!r}; use the same value, or choose another --work folder"
                    )
            return
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")

    def save_examples(self, examples: Examples) -> None:
        arrays = {
            "tokens": examples.tokens,
            "digests": examples.digests,
            "codes": examples.codes,
            "active": examples.active,
            "captions": np.frombuffer(json.dumps(examples.captions).encode(), np.uint8),
        }
        with atomic_write(self.examples) as temporary:
            save_arrays(arrays, temporary)

    def load_examples(self) -> Examples:
        """What `save_examples` wrote."""
        arrays = load_arrays(self.examples)
        names = ("tokens", "digests", "codes", "active")
        tokens, digests, codes, active = (arrays[name] for name in names)
        captions = json.loads(arrays["captions"].tobytes())
        return Examples(tokens, captions, digests, codes, active)

    def save_state(self, step: int, adapter: FaidAdapter, optimizer: torch.optim.Optimizer) -> None:
        """Write what going on after `step` updates needs; the former state stays until it is whole.

        Raises:
            InputError: The disk is full.
        """
        tensors: dict[str, Tensor] = {}
        for name, parameter in adapter.named_parameters():
            tensors[f"weight.{name}"] = parameter.detach()
            for moment in MOMENTS:
                tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
        with atomic_write(self.state) as temporary:
            on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            save_file(on_cpu, temporary, {"step": str(step)})

    def load_state(self, adapter: FaidAdapter, optimizer: torch.optim.Optimizer) -> int:
        """Take up the run; returns the updates done, 0 when it has not begun.

        Raises:
            InputError: The state is damaged.
        """
        if not self.state.is_file():
            return 0
        weights = open_weights([self.state])
        try:
            for name, parameter in adapter.named_parameters():
                with torch.no_grad():
                    parameter.copy_(weights.readers[f"weight.{name}"]())
                optimizer.state[parameter] = {
                    moment: _beside(weights.readers[f"{moment}.{name}"](), parameter, moment)
                    for moment in MOMENTS
                }
            return int(weights.metadata["step"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{self.state} is damaged ({error}); delete {self.folder} and train again"
            ) from error

    def saved_step(self) -> int:
        """Updates that the saved state stands for, 0 when there is none."""
        return int(open_weights([self.state]).metadata["step"]) if self.state.is_file() else 0

    def cut_log(self, step: int) -> list[dict[str, Any]]:
        """Drop what was logged after `step` updates; what is left."""
        lines = []
        if self.log.is_file():
            lines = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        kept = [line for line in lines if line["step"] <= step]
        with atomic_write(self.log) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
        return kept

    def results(self) -> dict[str, float]:
        """What was measured first of the base and last of the adapter, in bits a token."""
        found = {}
        for line in self.log.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            found |= {key: values[key] for key in RESULTS if key in values}
        return found

    def add_to_log(self, line: dict[str, Any]) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _beside(tensor: Tensor, parameter: Tensor, moment: str) -> Tensor:
    """A moment where AdamW keeps it: with its parameter, but for the count of steps."""
    return tensor.clone() if moment == "step" else tensor.to(parameter.device, copy=True)
