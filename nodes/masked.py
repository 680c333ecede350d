"""Masked Sampler."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..arrag_engine.bounds import (
    BEND,
    BEND_WIDTH,
    POWER,
    STEPS,
    TEMPERATURE,
    TIMES,
    check_choice,
)
from ..arrag_engine.faid import Faid
from ..arrag_engine.layers import Layer
from ..arrag_engine.settings import (
    CONFIDENCES,
    MASK_CURVES,
    RECOMMENDED,
    SIDES,
    Schedule,
    ScheduleChoice,
)
from .faid import adapter_inputs
from .inputs import checked, chosen
from .memory import ManagedModel
from .newer import ADVANCED, found_by
from .samplers import (
    NO,
    DrawingSettings,
    check_order,
    draw,
    later_inputs,
    picture_inputs,
    preview_input,
    retrieval_input,
    sampling_inputs,
    traced_outputs,
)
from .types import CATEGORY, RECOMMENDED_NUMBER

SCALE = " Show-o's own programs call the same guidance one less: their 5 is 6 here."
RECOMMENDED_STEPS = 0
GROWS = {"yes": True, "no": False}
OWN = Schedule()


class MaskedSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ARRAG_MaskedSampler",
            display_name="Masked Sampler",
            category=CATEGORY,
            description="Draws pictures in a few steps with a model of the Show-o family: each "
            "step predicts all unknown tokens, and those that the model is surest of stay. With "
            "retrieval, from a mixture with the distribution of retrieved patches (DAiD); with the "
            "adapter of a model, also FAiD.",
            **found_by("Show-o", "MaskGIT", "inpaint", "outpaint", "text to image", "sampler"),
            inputs=[
                *picture_inputs(),
                *sampling_inputs(SCALE),
                *schedule_inputs(),
                preview_input("steps", 1),
                retrieval_input("From Retrieval Options. Without it, the model draws alone."),
                *adapter_inputs(
                    "Strength of the FAiD adapter that the model has from Load FAiD Adapter. 0 = "
                    "the model alone, 1 = as trained. Without an adapter it has no effect."
                ),
                *later_inputs(),
                *outpaint_inputs(),
                grow_input(),
            ],
            outputs=traced_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: ManagedModel,
        steps: int = RECOMMENDED_STEPS,
        schedule: str = RECOMMENDED,
        power: float = OWN.power,
        sigmoid_start: float = OWN.sigmoid[0],
        sigmoid_end: float = OWN.sigmoid[1],
        sigmoid_temperature: float = OWN.sigmoid[2],
        choice_temperature: float = RECOMMENDED_NUMBER,
        confidence: str = RECOMMENDED,
        grow: str = RECOMMENDED,
        retrieval: tuple[Layer, ...] = (),
        strength: float = 1.0,
        candidates: int = 0,
        **settings: Any,
    ) -> io.NodeOutput:
        check_order(model, raster=False)
        sigmoid = (sigmoid_start, sigmoid_end, sigmoid_temperature)
        told = chosen_schedule(
            *(steps, schedule, power, sigmoid, choice_temperature, confidence, grow)
        )
        adapter = model.checkpoint.faid
        faid = None if adapter is None else Faid(adapter, strength, candidates)
        drawn = draw(
            *(cls.hidden.unique_id, model, DrawingSettings(schedule=told, **settings)),
            *(retrieval or (), faid),
        )
        return io.NodeOutput(*drawn)


def chosen_schedule(
    steps: int,
    curve: str,
    power: float,
    sigmoid: tuple[float, float, float],
    temperature: float,
    confidence: str,
    grow: str,
) -> ScheduleChoice:
    """The schedule that the widgets mean. Numbers that belong to another curve play no part.

    Raises:
        InputError: A value is out of range.
    """
    check_choice("schedule", curve, (*MASK_CURVES, RECOMMENDED))
    check_choice("confidence", confidence, (*CONFIDENCES, RECOMMENDED))
    check_choice("grow", grow, (*GROWS, RECOMMENDED))
    return ScheduleChoice(
        None if steps == RECOMMENDED_STEPS else steps,
        chosen(TEMPERATURE, temperature),
        None if curve == RECOMMENDED else curve,  # type: ignore[arg-type]
        power if curve == "pow" else None,
        sigmoid if curve == "sigmoid" else None,
        None if confidence == RECOMMENDED else confidence,  # type: ignore[arg-type]
        GROWS.get(grow),
    )


def schedule_inputs() -> list[io.Input]:
    """How the grid is filled, in the order workflows store them: only ever append."""
    return [
        io.Int.Input(
            "steps",
            default=RECOMMENDED_STEPS,
            min=RECOMMENDED_STEPS,
            max=STEPS.high,
            tooltip="Passes of the model. More steps take longer and choose fewer tokens at once. "
            "0 = recommended.",
        ),
        io.Combo.Input(
            "schedule",
            options=[RECOMMENDED, *MASK_CURVES],
            default=RECOMMENDED,
            tooltip="How the share of unknown tokens falls with the share t of the steps done: "
            "cosine: slowly at first. linear: evenly. pow: 1 - t^power. sigmoid: slowly at first "
            "and at last.",
            **ADVANCED,
        ),
        io.Float.Input(
            "power",
            default=OWN.power,
            min=0.1,
            max=POWER.high,
            step=0.1,
            tooltip="For the schedule pow: above 1 slowly at first, below 1 fast at first.",
            **ADVANCED,
        ),
        *sigmoid_inputs(),
        io.Float.Input(
            "choice_temperature",
            default=RECOMMENDED_NUMBER,
            min=RECOMMENDED_NUMBER,
            max=TEMPERATURE.high,
            step=0.1,
            tooltip="Noise in the choice of the tokens that stay; it falls to 0 with the steps. "
            "0: always those that the model is surest of. Above 0: more varied. "
            "-1 = recommended.",
            **ADVANCED,
        ),
        io.Combo.Input(
            "confidence",
            options=[RECOMMENDED, *CONFIDENCES],
            default=RECOMMENDED,
            tooltip="Whose probability of a token says how sure it is, with retrieval. mixture: "
            "the distribution that it was drawn from. model: the model alone.",
            **ADVANCED,
        ),
    ]


def grow_input() -> io.Input:
    """Whether the picture grows around what is known."""
    return io.Combo.Input(
        "grow",
        options=[RECOMMENDED, *GROWS],
        default=RECOMMENDED,
        optional=True,
        tooltip="yes: each step keeps only tokens beside known ones, so that the picture grows "
        "around what stands and retrieved patches have neighbours to fit. no: it keeps tokens "
        "anywhere.",
        **ADVANCED,
    )


def sigmoid_inputs() -> list[io.Input]:
    """The part of a sigmoid that the schedule of this name follows."""
    start, end, temperature = OWN.sigmoid
    return [
        io.Float.Input(
            "sigmoid_start",
            default=start,
            min=BEND.low,
            max=BEND.high,
            step=0.1,
            tooltip="For the schedule sigmoid: where its part of the curve begins.",
            **ADVANCED,
        ),
        io.Float.Input(
            "sigmoid_end",
            default=end,
            min=BEND.low,
            max=BEND.high,
            step=0.1,
            tooltip="For the schedule sigmoid: where its part of the curve ends.",
            **ADVANCED,
        ),
        io.Float.Input(
            "sigmoid_temperature",
            default=temperature,
            min=0.1,
            max=BEND_WIDTH.high,
            step=0.1,
            tooltip="For the schedule sigmoid: a low value makes the curve steeper.",
            **ADVANCED,
        ),
    ]


def outpaint_inputs() -> list[io.Input]:
    """Where a picture is continued, in the order workflows store them: only ever append."""
    return [
        io.Combo.Input(
            "outpaint",
            options=[NO, *SIDES],
            default=NO,
            optional=True,
            tooltip="Continues the picture of tokens beyond this side: half of what the model "
            "draws is added, and all tokens of the picture stay. Chain samplers for other sides "
            "or prompts.",
        ),
        io.Int.Input(
            "times",
            default=1,
            min=TIMES.low,
            max=TIMES.high,
            optional=True,
            tooltip="How often outpaint does so: twice adds one picture's width or height.",
        ),
    ]
