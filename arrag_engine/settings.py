"""The settings of drawing and training. Everything here loads without PyTorch, so that a command
line is read and refused at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

from .bounds import (
    BEND,
    BEND_WIDTH,
    CFG,
    NEIGHBOURS,
    POWER,
    RETRIEVAL_TEMPERATURE,
    RETRIEVAL_TOP_P,
    STEPS,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    WEIGHT,
    check_choice,
)
from .errors import InputError

COMPUTE_DTYPES = ("bf16", "fp16", "fp32")
DTYPE_CHOICES = ("auto", *COMPUTE_DTYPES, "int8", "fp8")
"""Of the decoder; the last two are what its weights are stored in."""
CROPS = ("center", "cover")
"""The middle of a picture as the reference takes it, or as many crops as it takes to see it all."""
HARM = 5e-5
"""Share of their tokens that retrieval may spoil in pictures that the model knows. It looks small,
but a picture has hundreds of tokens, and one that contradicts its caption can ruin it."""
Duplicates = Literal["first", "sum"]
DUPLICATES: tuple[Duplicates, ...] = get_args(Duplicates)

Curve = Literal["constant", "linear", "ease in", "ease out", "rows"]
"""How a layer's weight runs from its start to its end: constant; growing from 0 to the whole
weight; or one factor for each row of the picture."""
CURVES: tuple[Curve, ...] = get_args(Curve)

BorderKeys = Literal["in", "out"]
BORDER_KEYS: tuple[BorderKeys, ...] = get_args(BorderKeys)
Distances = Literal["sum", "mean"]
DISTANCES: tuple[Distances, ...] = get_args(Distances)

Unknown = Literal["zero", "ignore"]
UNKNOWN: tuple[Unknown, ...] = get_args(Unknown)

Side = Literal["left", "right", "up", "down"]
"""Of a picture that is continued."""
SIDES: tuple[Side, ...] = get_args(Side)

PROMPT = "{prompt}"
"""Stands for the prompt's words in a layer's `only`."""
AS_BUILT, RECOMMENDED = "as built", "recommended"

HOPS = ((1,), (2,), (1, 2))
"""Sets of windows that a blender may have: hop 1 sees 3x3 positions, hop 2 sees 5x5."""

Semantics = Literal["step", "stepzero"]
"""What a later blender has for candidates where retrieval does not run: the former blender's output
(`step`: the official inference) or nothing (`stepzero`: the official training)."""
SEMANTICS: tuple[Semantics, ...] = ("step", "stepzero")


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from the model's logits."""

    cfg: float = 5.0
    """Guidance weight w: logits = uncond + w (cond - uncond)."""
    temperature: float = 1.0
    """0 = always the most probable token."""
    top_k: int = 0
    """Keep only this many tokens; 0 = all."""
    top_p: float = 1.0
    """Keep the most probable tokens up to this mass; the one that crosses it stays."""
    argmax: bool = False
    """Shape the distribution at `temperature`, then take its most probable token."""

    def __post_init__(self) -> None:
        CFG.check(self.cfg)
        TEMPERATURE.check(self.temperature)
        TOP_K.check(self.top_k)
        TOP_P.check(self.top_p)

    @property
    def greedy(self) -> bool:
        """Whether tokens are taken without noise."""
        return self.argmax or self.temperature == 0


@dataclass(frozen=True)
class SamplingChoice:
    """`Sampling` in which None takes the model's own value."""

    cfg: float | None = None
    temperature: float | None = None
    top_k: int = 0
    top_p: float | None = None

    def __post_init__(self) -> None:
        self.over(Sampling())

    def over(self, own: Sampling) -> Sampling:
        """The values that are meant.

        Raises:
            InputError: A value out of range.
        """
        chosen = {name: value for name, value in asdict(self).items() if value is not None}
        if self.temperature is not None:  # the model's own top-p belongs to its own temperature
            chosen.setdefault("top_p", 1.0)
        return replace(own, **chosen)


@dataclass(frozen=True)
class RetrievalOptions:
    """How retrieved patches are turned into proposals and how much they weigh."""

    weight: float | Literal["auto"] = 0.1
    """λ: p = (1 - λ) p_model + λ p_retrieval; auto: at each position what the index's calibration
    makes of the neighbours."""
    temperature: float = 0.05
    """τ: p_retrieval = softmax(-distance / τ)."""
    neighbours: int = 64
    """K: how many patches a query brings back; more than the index holds means all of them."""
    duplicates: Duplicates = "first"
    """Several neighbours with one code: the nearest counts (reference), or they add up (kNN-LM)."""
    top_p: float = 1.0
    """Keep the most probable proposals up to this mass."""
    border_keys: BorderKeys = "in"
    """Of models that draw in any order. Whether a patch may be found that lacks a neighbour which
    the query knows, because it lies at the border of its picture. "in": such a neighbour adds a
    fixed distance, much less than a wrong one, so that border patches crowd out the others. "out":
    a patch is found only where it has every neighbour that the query knows. All distances then
    compare the same neighbours; a query at the border of the picture finds patches of the same
    border, and of the interior."""
    distances: Distances = "sum"
    """Of models that draw in any order: over the known neighbours, squared. The sum grows with
    their number, the mean is comparable and suits one τ."""

    def __post_init__(self) -> None:
        WEIGHT.check(self.weight)
        RETRIEVAL_TEMPERATURE.check(self.temperature)
        NEIGHBOURS.check(self.neighbours)
        check_choice("duplicates", self.duplicates, DUPLICATES)
        RETRIEVAL_TOP_P.check(self.top_p)
        check_choice("border keys", self.border_keys, BORDER_KEYS)
        check_choice("distances", self.distances, DISTANCES)

    @property
    def weighs(self) -> bool:
        """Whether retrieval has any say."""
        return self.weight == "auto" or self.weight > 0


MaskCurve = Literal["cosine", "linear", "pow", "sigmoid"]
MASK_CURVES: tuple[MaskCurve, ...] = get_args(MaskCurve)
Confidence = Literal["mixture", "model"]
CONFIDENCES: tuple[Confidence, ...] = get_args(Confidence)


@dataclass(frozen=True)
class Schedule:
    """How a model that draws in any order fills its grid."""

    steps: int = 16
    """Passes of the model."""
    temperature: float = 1.0
    """Of the choice of positions; 0 = always those of which the model is surest."""
    curve: MaskCurve = "cosine"
    """How the share of unknown tokens falls with the share t of steps done: cos(t π/2), 1 - t,
    1 - t^power, or a part of a sigmoid, scaled to fall from 1 to 0."""
    power: float = 2.0
    sigmoid: tuple[float, float, float] = (-3.0, 3.0, 1.0)
    """Where the part begins and ends, and the temperature of the sigmoid."""
    confidence: Confidence = "mixture"
    """Whose probability of a drawn token says how sure it is: the distribution's that it was drawn
    from, with what is retrieved, or the model's alone."""
    grow: bool = False
    """Whether only tokens beside known ones stay, as soon as any token is known: the picture grows
    around what stands, so that what is retrieved has neighbours to fit."""

    def __post_init__(self) -> None:
        STEPS.check(self.steps)
        check_choice("confidence", self.confidence, CONFIDENCES)
        TEMPERATURE.check(self.temperature)
        check_choice("curve", self.curve, MASK_CURVES)
        POWER.check(self.power)
        start, end, width = self.sigmoid
        if BEND.check(start) == BEND.check(end):
            raise InputError(f"the sigmoid begins and ends at {start}; choose two numbers")
        BEND_WIDTH.check(width)


@dataclass(frozen=True)
class ScheduleChoice:
    """`Schedule` in which None takes the model's own value."""

    steps: int | None = None
    temperature: float | None = None
    curve: MaskCurve | None = None
    power: float | None = None
    sigmoid: tuple[float, float, float] | None = None
    confidence: Confidence | None = None
    grow: bool | None = None

    def __post_init__(self) -> None:
        self.over(Schedule())

    def over(self, own: Schedule) -> Schedule:
        """The values that are meant.

        Raises:
            InputError: A value out of range.
        """
        chosen = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(own, **chosen)


AdapterOrder = Literal["raster", "masked"]
"""Of the models that an adapter is for. In raster order a blender sees what is drawn above and left
of a position; of a masked grid, whatever is known on all sides."""
ADAPTER_ORDERS: tuple[AdapterOrder, ...] = get_args(AdapterOrder)


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter consists of."""

    blender_layers: tuple[int, ...]
    """Decoder layers with a blender."""
    hops: tuple[int, ...] = (1, 2)
    rank: int = 0
    """Of the low-rank changes of every layer's q and v; 0 = none."""
    alpha: float = 0.0
    dropout: float = 0.0
    """In front of the low-rank changes while training."""
    head: bool = False
    """Whether it has a prediction head of its own."""
    candidates: int = 10
    """Retrieved codes that its blenders were trained to receive at each position."""
    order: AdapterOrder = "raster"
