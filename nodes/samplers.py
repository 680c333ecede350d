"""AR Sampler, DAiD Sampler."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io
from server import PromptServer

from ..arrag_engine.daid import Retrieval as EngineRetrieval
from ..arrag_engine.decode import Drawing, draw_pictures
from ..arrag_engine.faid import Faid
from ..arrag_engine.prompt import Prompt
from ..arrag_engine.retriever import Retriever
from ..arrag_engine.sampling import Sampling
from .memory import ManagedModel
from .preview import Preview
from .types import CATEGORY, Model, Retrieval, RetrievalChoice, TokenGrids, Tokens, Trace
from .vq import decode_pixels

DEFAULTS = Sampling()


def drawing_inputs() -> list[io.Input]:
    """Inputs that every sampler has, in the order workflows store them: only ever append."""
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
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Picture i of a batch is the picture of seed + i drawn alone.",
        ),
        io.Int.Input("batch", default=1, min=1, max=64, tooltip="Number of pictures."),
        io.Float.Input(
            "cfg",
            default=DEFAULTS.cfg,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="Guidance: how strictly the picture follows the prompt. 1 = none, twice as "
            "fast. Janus-Pro: 5, pocket: 1.5.",
        ),
        io.Float.Input(
            "temperature",
            default=DEFAULTS.temperature,
            min=0.0,
            max=100.0,
            step=0.05,
            tooltip="Below 1: safer. Above 1: more varied. 0: always the most probable token. "
            "Janus-Pro: 1, pocket: 0.3.",
        ),
        io.Int.Input(
            "top_k",
            default=DEFAULTS.top_k,
            min=0,
            max=1_000_000,
            tooltip="Draws only from the k most probable tokens. 0 = all.",
        ),
        io.Float.Input(
            "top_p",
            default=DEFAULTS.top_p,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="Draws only from the most probable tokens up to this total probability. "
            "1 = all.",
        ),
        io.Int.Input(
            "window",
            default=1,
            min=1,
            max=64,
            tooltip="Tokens computed in one pass of the model. The picture stays the same. 8 to 32 "
            "saves passes, which is faster on a GPU and rarely on a CPU.",
        ),
        io.Int.Input(
            "preview_every",
            default=2,
            min=0,
            max=256,
            tooltip="Shows a preview after every so many rows. 0 = no preview.",
        ),
    ]


def drawing_outputs() -> list[io.Output]:
    return [
        io.Image.Output("IMAGE", display_name="image"),
        Tokens.Output("TOKENS", display_name="tokens", tooltip="For VQ Decode."),
    ]


def draw(
    node_id: str | None,
    managed: ManagedModel,
    prompt: str,
    seed: int,
    batch: int,
    cfg: float,
    temperature: float,
    top_k: int,
    top_p: float,
    window: int,
    preview_every: int,
    retrieval: RetrievalChoice | None = None,
    faid: Faid | None = None,
) -> tuple[Any, TokenGrids, Drawing]:
    """(image, tokens, drawing) by the engine, under ComfyUI's memory and progress."""
    sampling = Sampling(cfg, temperature, top_k, top_p)
    encoded = managed.checkpoint.prompt_encoder.encode(prompt)
    warn_unknown(node_id, encoded)
    engine_retrieval = None
    if retrieval is not None:
        retriever = Retriever(retrieval.index, managed.model.config.grid, managed.codebook)
        engine_retrieval = EngineRetrieval(
            retriever, retrieval.options, unknown_words=bool(encoded.unknown)
        )
    length = len(encoded.ids) + managed.model.config.grid.size
    working = managed.model.drawing_bytes(2 * batch, length, window)
    device = managed.to_device(working, with_adapter=faid is not None)
    drawing = draw_pictures(
        managed.model,
        encoded.ids,
        encoded.pad_id,
        sampling,
        [seed + i for i in range(batch)],
        engine_retrieval,
        window,
        Preview(managed.model, device, preview_every),
        device,
        faid,
    )
    tokens = TokenGrids(drawing.tokens, managed.codebook)
    return decode_pixels(managed, tokens), tokens, drawing


def warn_unknown(node_id: str | None, prompt: Prompt) -> None:
    """Name the words the model cannot know, in the log and under the node."""
    if not prompt.unknown:
        return
    text = f"The model does not know: {', '.join(prompt.unknown)}"
    logging.warning(text)
    if node_id is not None:
        PromptServer.instance.send_progress_text(text, node_id)


class ARSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ARRAG_Sampler",
            display_name="AR Sampler",
            category=CATEGORY,
            description="Draws pictures token by token with the model alone, without retrieval.",
            inputs=drawing_inputs(),
            outputs=drawing_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: ManagedModel, **settings: Any) -> io.NodeOutput:
        image, tokens, _ = draw(cls.hidden.unique_id, model, **settings)
        return io.NodeOutput(image, tokens)


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
            inputs=[
                *drawing_inputs(),
                Retrieval.Input(
                    "retrieval",
                    optional=True,
                    tooltip="From Retrieval Options. Without it, the model draws alone.",
                ),
            ],
            outputs=[
                *drawing_outputs(),
                Trace.Output(
                    "TRACE", display_name="trace", tooltip="What was retrieved at each position."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: ManagedModel, **settings: Any) -> io.NodeOutput:
        return io.NodeOutput(*draw(cls.hidden.unique_id, model, **settings))
