"""AR Sampler, DAiD Sampler."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io
from server import PromptServer
from torch import Tensor

from ..arrag_engine import session
from ..arrag_engine.bounds import (
    BATCH,
    CFG,
    MAX_SEED,
    PREVIEW_EVERY,
    REDRAW,
    TEMPERATURE,
    TIMES,
    TOP_K,
    TOP_P,
    WINDOW,
    check_choice,
    picture_seeds,
)
from ..arrag_engine.decode import Drawing, Kept, pass_width
from ..arrag_engine.editing import keep_outside
from ..arrag_engine.errors import InputError, printable
from ..arrag_engine.faid import Faid
from ..arrag_engine.layers import Layer
from ..arrag_engine.outpainting import Outpainting, outpaint
from ..arrag_engine.settings import SIDES, SamplingChoice, ScheduleChoice
from .inputs import checked, chosen
from .memory import ManagedModel
from .newer import ADVANCED, found_by
from .preview import Preview, RowPreview, StepPreview, every_of
from .types import (
    CATEGORY,
    RECOMMENDED_NUMBER,
    Model,
    Retrieval,
    TokenGrids,
    Tokens,
    Trace,
)
from .vq import check_vq, decode_pixels

WIDEST = 64
"""Window on offer; wider ones save no more passes."""
NO = "no"
OTHER_SAMPLER = "The adapter of the model is not used: only the FAiD Sampler uses adapters."
NO_PREVIEW = "No preview: the GPU's memory holds the decoder, but not the VQ beside it."


@dataclass(frozen=True)
class DrawingSettings:
    """What the widgets of `drawing_inputs` hold; RECOMMENDED_NUMBER stands for the model's value.

    Raises:
        InputError: A value is out of range.
    """

    prompt: str
    seed: int
    batch: int
    cfg: float
    temperature: float
    top_k: int
    top_p: float
    preview_every: int
    window: int = 0
    exact_batch: bool = False
    negative: str = ""
    tokens: TokenGrids | None = None
    mask: Tensor | None = None
    redraw: float = 1.0
    schedule: ScheduleChoice | None = None
    """Of the Masked Sampler."""
    outpaint: str = NO
    """The side beyond which the picture is continued."""
    times: int = 1

    def __post_init__(self) -> None:
        WINDOW.check(self.window)
        PREVIEW_EVERY.check(self.preview_every)

    def sampling(self) -> SamplingChoice:
        return SamplingChoice(
            chosen(CFG, self.cfg),
            chosen(TEMPERATURE, self.temperature),
            self.top_k,
            chosen(TOP_P, self.top_p),
        )

    def outpainting(self, managed: ManagedModel) -> Outpainting | None:
        """The pictures to continue, if that is asked for.

        Raises:
            InputError: There are none, they do not fit the model or the batch, or something is said
                of tokens inside them.
        """
        TIMES.check(self.times)
        if check_choice("outpaint", self.outpaint, (NO, *SIDES)) == NO:
            return None
        if self.tokens is None:
            raise InputError(
                f"outpaint is {self.outpaint!r}, but no tokens of a picture are connected; connect "
                "those of VQ Encode or of a sampler"
            )
        if self.mask is not None or self.redraw != 1:
            raise InputError(
                "outpainting keeps all tokens of the picture; disconnect the mask and set redraw "
                f"to 1, or set outpaint to {NO!r}"
            )
        check_vq(managed, self.tokens)
        chosen = Outpainting(self.tokens.codes.cpu(), self.outpaint, self.times)  # type: ignore[arg-type]
        chosen.check_fits(managed.model, self.batch)
        return chosen

    def kept(self, managed: ManagedModel) -> Kept | None:
        """What stays of the pictures that are edited.

        Raises:
            InputError: They do not fit the model, the batch or the mask.
        """
        if self.tokens is None:
            if self.mask is not None:
                raise InputError(
                    "a mask is connected, but no tokens of a picture; connect those of VQ Encode, "
                    "or disconnect the mask"
                )
            return None
        check_vq(managed, self.tokens)
        mask = None if self.mask is None else self.mask.float().cpu().numpy()
        if mask is not None and mask.ndim == 2:
            mask = mask[None]
        kept = keep_outside(self.tokens.codes.cpu().numpy(), mask, managed.model.grid)
        kept.check_fits(managed.model.grid.size, managed.model.vocab, self.batch)
        return kept


def drawing_inputs() -> list[io.Input]:
    """Inputs that every sampler in raster order has, in the order workflows store them: only ever
    append."""
    return [
        *picture_inputs(),
        *sampling_inputs(),
        io.Int.Input(
            "window",
            default=0,
            min=WINDOW.low,
            max=WIDEST,
            tooltip="Tokens computed in one pass of the model. The picture stays the same. 0 = the "
            "device's: 16 on a GPU, 1 on a CPU, where more is rarely faster.",
            **ADVANCED,
        ),
        preview_input("rows", 2),
    ]


def picture_inputs() -> list[io.Input]:
    """What is drawn, and how often; of every sampler."""
    return [
        Model.Input("model", tooltip="The model that draws."),
        io.String.Input(
            "prompt",
            multiline=True,
            default="a red car",
            tooltip="What to draw. A warning lists words that the model does not know.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=MAX_SEED,
            control_after_generate=True,
            tooltip="Picture i of a batch is the picture of seed + i drawn alone.",
        ),
        io.Int.Input(
            "batch", default=1, min=BATCH.low, max=BATCH.high, tooltip="Number of pictures."
        ),
    ]


def sampling_inputs(scale: str = "") -> list[io.Input]:
    """How tokens are drawn from logits; of every sampler.

    Args:
        scale: What there is to say of the scale of guidance.
    """
    return [
        io.Float.Input(
            "cfg",
            default=RECOMMENDED_NUMBER,
            min=RECOMMENDED_NUMBER,
            max=CFG.high,
            step=0.1,
            tooltip="Guidance: how strictly the picture follows the prompt. 1 = none, twice as "
            f"fast. -1 = the model's own value.{scale}",
        ),
        io.Float.Input(
            "temperature",
            default=RECOMMENDED_NUMBER,
            min=RECOMMENDED_NUMBER,
            max=TEMPERATURE.high,
            step=0.05,
            tooltip="Below 1: safer. Above 1: more varied. 0: always the most probable token. "
            "-1: the model's own value.",
        ),
        io.Int.Input(
            "top_k",
            default=0,
            min=TOP_K.low,
            max=TOP_K.high,
            tooltip="Draws only from the k most probable tokens. 0 = all.",
            **ADVANCED,
        ),
        io.Float.Input(
            "top_p",
            default=RECOMMENDED_NUMBER,
            min=RECOMMENDED_NUMBER,
            max=TOP_P.high,
            step=0.01,
            tooltip="Draws only from the most probable tokens up to this total probability. "
            "1 = all, -1 = the model's own value.",
            **ADVANCED,
        ),
    ]


def preview_input(unit: str, every: int) -> io.Input:
    """How often a preview is shown."""
    return io.Int.Input(
        "preview_every",
        default=every,
        min=PREVIEW_EVERY.low,
        max=PREVIEW_EVERY.high,
        tooltip=f"Shows a preview after every so many {unit}. 0 = no preview.",
        **ADVANCED,
    )


def later_inputs() -> list[io.Input]:
    """Inputs that every sampler has after its own, in the order workflows store them: only ever
    append."""
    return [
        io.Boolean.Input(
            "exact_batch",
            default=False,
            optional=True,
            tooltip="In 16-bit precision: draw the pictures of a batch one after the other, so "
            "that each is the picture drawn alone. Off: faster, and a picture may differ from the "
            "one drawn alone. In fp32 they are always the same.",
            **ADVANCED,
        ),
        io.String.Input(
            "negative",
            multiline=True,
            default="",
            optional=True,
            tooltip="Negative prompt: what guidance leads away from, such as a colour or a thing. "
            "Empty = nothing in particular. It has no effect at cfg 1.",
        ),
        Tokens.Input(
            "tokens",
            optional=True,
            tooltip="The picture to edit, from VQ Encode or a sampler: what the mask leaves out "
            "stays. One for all pictures of the batch, or one for each.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="The part of the picture that is drawn anew: every token with a masked pixel "
            "in its place. Of any size; centre-cropped as VQ Encode crops pictures. Without a "
            "mask: the whole picture, as far as redraw says.",
        ),
        io.Float.Input(
            "redraw",
            default=1.0,
            min=REDRAW.low,
            max=REDRAW.high,
            step=0.01,
            optional=True,
            tooltip="Share of the masked tokens that is drawn anew, the least probable under the "
            "model first. 1 = all, 0 = nothing changes. Below 1, tokens must be connected.",
            **ADVANCED,
        ),
    ]


def drawing_outputs() -> list[io.Output]:
    return [
        io.Image.Output("IMAGE", display_name="image"),
        Tokens.Output("TOKENS", display_name="tokens", tooltip="For VQ Decode."),
    ]


def notes_output() -> io.Output:
    """The last output of every sampler's own list."""
    return io.String.Output(
        "NOTES",
        display_name="notes",
        tooltip="The values used and where they come from, the subject found in the index, unknown "
        "words, and what was skipped.",
    )


def traced_outputs() -> list[io.Output]:
    """Of the samplers that retrieve."""
    trace = Trace.Output(
        "TRACE", display_name="trace", tooltip="What was retrieved at each position."
    )
    return [*drawing_outputs(), trace, notes_output()]


def retrieval_input(tooltip: str) -> io.Input:
    return Retrieval.Input("retrieval", optional=True, tooltip=tooltip)


def draw(
    node_id: str | None,
    managed: ManagedModel,
    settings: DrawingSettings,
    retrieval: Sequence[Layer] = (),
    faid: Faid | None = None,
) -> tuple[Any, TokenGrids, Drawing, str]:
    """(image, tokens, drawing, notes) by the engine, under ComfyUI's memory and progress.

    Raises:
        InputError: A value, or what is connected, cannot be used.
    """
    check_order(managed, settings.schedule is None)
    checkpoint, sampling = managed.checkpoint, settings.sampling()
    seeds = picture_seeds(settings.seed, settings.batch)
    place = managed.search_places()
    outpainting, redraw = settings.outpainting(managed), settings.redraw
    kept = settings.kept(managed) if outpainting is None else None
    planned = session.plan(
        checkpoint,
        settings.prompt,
        sampling,
        retrieval,
        faid,
        managed.codebook,
        place,
        settings.negative,
        kept,
        redraw,
        settings.schedule,
    )
    unused = [OTHER_SAMPLER] if faid is None and checkpoint.faid is not None else []
    notes = show_notes(node_id, [*planned.notes, *unused])
    length = planned.recipe.longest + managed.model.grid.size
    every, working = every_of(settings.preview_every), working_bytes(managed, length, settings)
    shown = managed.to_draw(working, faid is not None, every > 0)
    if every and not shown:
        notes = show_notes(node_id, [*notes.splitlines(), NO_PREVIEW])
    preview = preview_of(managed, every if shown else 0, kept)
    if outpainting is None:
        drawing = session.draw(
            checkpoint,
            planned,
            seeds,
            settings.window,
            preview,
            managed.device,
            managed.passes,
            settings.exact_batch,
        )
    else:
        drawing = outpaint(
            *(checkpoint, planned, seeds, outpainting),
            *(preview, managed.device, managed.passes, settings.exact_batch),
        )
    if drawing.notes:
        notes = show_notes(node_id, [*notes.splitlines(), *drawing.notes])
    tokens = TokenGrids(drawing.tokens, managed.codebook)
    return decode_pixels(managed, tokens), tokens, drawing, notes


def check_order(managed: ManagedModel, raster: bool) -> None:
    """Refuse a model that the node does not draw with.

    Args:
        raster: Whether the node draws in raster order.

    Raises:
        InputError: The model draws in another order.
    """
    if managed.model.order.raster == raster:
        return
    name, order = managed.checkpoint.name, managed.model.order.name
    if raster:
        raise InputError(
            f"{name} draws in {order}; connect it to the Masked Sampler, or load a Janus-Pro model"
        )
    raise InputError(
        f"{name} draws in {order}; connect it to the AR Sampler, DAiD Sampler or FAiD Sampler, or "
        "load a Show-o model"
    )


def preview_of(managed: ManagedModel, every: int, kept: Kept | None) -> Preview:
    """What shows a drawing in the order of its model."""
    if not managed.model.order.raster:
        return StepPreview(managed.model, managed.device, every)
    edited = None if kept is None else kept.tokens
    return RowPreview(managed.model, managed.device, every, edited)


def working_bytes(managed: ManagedModel, length: int, settings: DrawingSettings) -> int:
    """Memory that a drawing needs besides the weights, for sequences of `length` tokens."""
    model = managed.model
    batch = 1 if session.one_by_one(model, settings.exact_batch) else settings.batch
    window = settings.window or session.device_window(managed.device)
    width = window if managed.device.type == "cpu" else pass_width(model, window)
    drawing = model.drawing_bytes(2 * batch, length, width)
    if settings.redraw == 1:
        return drawing
    return max(drawing, model.drawing_bytes(2, length, length))  # one pass over a whole picture


def show_notes(node_id: str | None, notes: list[str]) -> str:
    """Show the notes in the log and, in the classic renderer, under the node; one for each line."""
    for note in notes:
        logging.info(note)
    text = "\n".join(notes)
    if node_id is not None:
        PromptServer.instance.send_progress_text(printable(text), node_id)
    return text


class ARSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ARRAG_Sampler",
            display_name="AR Sampler",
            category=CATEGORY,
            description="Draws pictures token by token with the model alone, without retrieval.",
            **found_by("autoregressive", "Janus", "text to image", "sampler"),
            inputs=[*drawing_inputs(), *later_inputs()],
            outputs=[*drawing_outputs(), notes_output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(cls, model: ManagedModel, **settings: Any) -> io.NodeOutput:
        image, tokens, _, notes = draw(cls.hidden.unique_id, model, DrawingSettings(**settings))
        return io.NodeOutput(image, tokens, notes)


class DAiDSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ARRAG_DAiDSampler",
            display_name="DAiD Sampler",
            category=CATEGORY,
            description="Draws pictures token by token from a mixture of the model's distribution "
            "and the distribution of retrieved patches (DAiD). Without retrieval it equals the AR "
            "Sampler.",
            **found_by("AR-RAG", "retrieval", "reference", "Janus", "text to image"),
            inputs=[
                *drawing_inputs(),
                retrieval_input("From Retrieval Options. Without it, the model draws alone."),
                *later_inputs(),
            ],
            outputs=traced_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(
        cls, model: ManagedModel, retrieval: tuple[Layer, ...] = (), **settings: Any
    ) -> io.NodeOutput:
        drawn = draw(cls.hidden.unique_id, model, DrawingSettings(**settings), retrieval or ())
        return io.NodeOutput(*drawn)
