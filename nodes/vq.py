"""VQ Encode, VQ Decode."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io
from torch import Tensor

from ..arrag_engine.codebook import codebook_agreement
from ..arrag_engine.errors import InputError
from ..arrag_engine.images import from_floats, to_tensor
from .inputs import checked
from .memory import ManagedModel
from .newer import found_by
from .progress import watched
from .types import CATEGORY, Model, TokenGrids, Tokens


def decode_pixels(managed: ManagedModel, tokens: TokenGrids) -> Tensor:
    """A ComfyUI IMAGE [B, H, W, 3] in [0, 1], one picture at a time to save memory."""
    device = managed.to_decode(managed.model.pictures_in(tokens.codes))
    grids = watched(tokens.codes.split(1))
    images = [managed.model.vq.decode(one.to(device)).cpu() for one in grids]
    return ((torch.cat(images).float() + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1)


def check_vq(managed: ManagedModel, tokens: TokenGrids) -> None:
    """Refuse tokens that mean something else to a model.

    Raises:
        InputError: They were made with another VQ.
    """
    agreement = codebook_agreement(managed.codebook, tokens.codebook)
    if not agreement.same:
        raise InputError(
            f"the tokens were made with another VQ ({agreement}); use them with the model that "
            "made them"
        )


class VQEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ARRAG_VQEncode",
            display_name="VQ Encode",
            category=CATEGORY,
            description="Encodes pictures as the model's image tokens. Pictures are resized and "
            "centre-cropped to the size that the model draws; transparent areas become white.",
            **found_by("tokenize", "image to tokens"),
            inputs=[
                Model.Input("model", tooltip="The model whose VQ tokenizer encodes."),
                io.Image.Input("image", tooltip="Pictures of any size."),
            ],
            outputs=[
                Tokens.Output("TOKENS", display_name="tokens"),
                io.Image.Output(
                    "CROP",
                    display_name="crop",
                    tooltip="The picture that was encoded: resized and cropped. With it, "
                    "ImageCompositeMasked brings the original pixels back outside a mask.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(cls, model: ManagedModel, image: Tensor) -> io.NodeOutput:
        device = model.to_decode()
        codes, crops = [], []
        for one in watched(image.unbind()):
            fitted = model.model.frame.fit(from_floats(one))
            codes.append(model.model.vq.encode(to_tensor([fitted]).to(device))[0].cpu())
            crops.append(torch.from_numpy(np.array(fitted)) / 255)  # as Load Image makes them
        return io.NodeOutput(TokenGrids(torch.cat(codes), model.codebook), torch.stack(crops))


class VQDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ARRAG_VQDecode",
            display_name="VQ Decode",
            category=CATEGORY,
            description="Decodes image tokens to pictures.",
            **found_by("detokenize", "tokens to image"),
            inputs=[
                Model.Input(
                    "model", tooltip="The model that made the tokens, or one with the same VQ."
                ),
                Tokens.Input("tokens", tooltip="From a sampler or VQ Encode."),
            ],
            outputs=[io.Image.Output("IMAGE", display_name="image")],
        )

    @classmethod
    @checked
    def execute(cls, model: ManagedModel, tokens: TokenGrids) -> io.NodeOutput:
        check_vq(model, tokens)
        return io.NodeOutput(decode_pixels(model, tokens))
