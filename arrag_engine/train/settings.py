"""Settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..bounds import TRAINING, check_choice, shown
from ..errors import InputError
from ..settings import HOPS, SEMANTICS, AdapterConfig, AdapterOrder, Semantics

INITS = ("nonzero", "zero", "copy")


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides the result, besides the model, the pictures and the index."""

    steps: int = 1000
    """Updates of the weights."""
    batch: int = 4
    """Pictures in a batch."""
    accumulation: int = 4
    """Batches an update is made of, in each process."""
    lr: float = 2e-4
    """Highest learning rate of AdamW, reached after the warm-up; falls to zero as a cosine."""
    blender_lr: float = 1.0
    """Factor on it for the blenders and their norms."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Longest gradient; longer ones are shortened to it."""
    rank: int = 128
    """Of the low-rank changes of q and v; 0 = none."""
    alpha: float = 256.0
    dropout: float = 0.05
    """In front of the low-rank changes."""
    train_head: bool = True
    """Train a copy of the generation head too."""
    blender_every: int = 12
    """Stride of the decoder layers with a blender, from `blender_from` on; 0 = that layer only."""
    blender_from: int = 0
    """First layer with a blender."""
    hops: tuple[int, ...] = (1, 2)
    candidates: int = 10
    """Retrieved codes that the blenders receive at each position, duplicates kept."""
    pool: int = 0
    """Sample the candidates for every picture and step from this many nearest; 0 = as many as
    there are candidates, whose order is shuffled."""
    init: Literal["nonzero", "zero", "copy"] = "nonzero"
    """Output of the blenders before the training: random features, zeros, or features that make
    each candidate's own code likelier, fitted to the base."""
    gain: float = 1.0
    """Factor on the output of the blenders before the training. A random blender's features are
    about 0.1 large; beside hidden states of 10 they have little effect and learn slowly."""
    semantics: Semantics = "step"
    caption_dropout: float = 0.1
    """Share of pictures whose caption is blanked, as the unconditional stream's is."""
    blend_dropout: float = 0.5
    """Share of these whose blenders are off too, as they are in the unconditional stream."""
    retrieval: bool = True
    """False: no blenders and nothing looked up, the rest is trained the same: a control."""
    held_out: float = 0.05
    """Share of the pictures that are measured and never trained on."""
    rehearse: float = 0.5
    """Share of each update that the base's own pictures make up, where there are any."""
    rehearse_pictures: int = 256
    """How many of these are trained on."""
    every: int = 50
    """Steps between measurements, each of which writes a checkpoint."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, bound in TRAINING.items():
            bound.check(getattr(self, name))
        if self.hops not in HOPS:
            raise InputError(f"hops is {shown(self.hops)}; choose one of {HOPS}")
        check_choice("init", self.init, INITS)
        check_choice("semantics", self.semantics, SEMANTICS)
        if 0 < self.pool < self.candidates:
            raise InputError(
                f"the pool is {self.pool} for {self.candidates} candidates; choose a larger pool"
            )
        if not (self.retrieval or self.rank or self.train_head):
            raise InputError("there is nothing to train; give a rank or train the head")

    @property
    def pictures_a_step(self) -> int:
        """Pictures that an update is made of, in each process."""
        return self.batch * self.accumulation

    @property
    def looked_up(self) -> int:
        """Codes to retrieve for each position."""
        return (self.pool or self.candidates) if self.retrieval else 0

    def adapter(self, num_layers: int, order: AdapterOrder = "raster") -> AdapterConfig:
        """The adapter to train for a decoder of so many layers.

        Raises:
            InputError: There is no such layer, or a setting is without effect in this order.
        """
        if order == "masked" and self.semantics != "step":
            raise InputError(
                f"semantics is {self.semantics}, but blenders of a model that draws in any order "
                "work only where retrieval runs; choose step"
            )
        if self.retrieval and self.blender_from >= num_layers:
            raise InputError(
                f"blender from is {self.blender_from}, the decoder has {num_layers} layers; "
                f"choose 0 to {num_layers - 1}"
            )
        stride = self.blender_every or num_layers
        layers = tuple(range(self.blender_from, num_layers, stride)) if self.retrieval else ()
        return AdapterConfig(
            layers,
            self.hops,
            self.rank,
            self.alpha,
            self.dropout,
            self.train_head,
            self.candidates,
            order,
        )

    def rate(self, step: int) -> float:
        """Learning rate of an update, the first one being step 0."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.lr * (step + 1) / rising
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / (self.steps - rising)))
