"""The adapter before its first update."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..faid import FaidAdapter, PatchBlender, order_for
from ..models.families import ImageModel
from .data import Batches
from .forced import predicting, sequence_states
from .settings import TrainSettings

MOST_PICTURES = 512
"""Largest number of pictures that the hidden states of codes are averaged over."""
RIDGE = 1e-3
"""Added to the candidates' mean squares, which are 1."""
EXPECTED = 0.1
"""Smallest summed probability of a code, over its places, for its hidden states to be used."""
SMALL = 0.1
"""Factor on a copying blender's random weights, which let it learn more than the copy."""


def new_adapter(base: ImageModel, settings: TrainSettings, batches: Batches) -> FaidAdapter:
    """An adapter in float32 that changes nothing but what its blenders add.

    Args:
        batches: The training pictures; used by blenders that begin by copying.
    """
    torch.manual_seed(settings.seed)
    config = settings.adapter(base.config.decoder.num_layers, order_for(base.order))
    adapter = FaidAdapter(base.config, config)
    for layer in adapter.by_layer.values():
        for low_rank in (layer.q_proj, layer.v_proj):
            if low_rank is not None:
                nn.init.zeros_(low_rank.lora_B.weight)
    if adapter.gen_head is not None:
        adapter.gen_head.load_state_dict(base.code_head.state_dict())
    layers = adapter.by_layer.values()
    blenders = [x.blender for x in layers if isinstance(x.blender, PatchBlender)]
    if settings.init == "copy" and blenders:
        begin_copying(base, blenders, batches, settings)
    else:
        gain = 0.0 if settings.init == "zero" else settings.gain
        for blender in blenders:
            scale_output(blender, gain)
    return adapter


@torch.no_grad()
def scale_output(blender: PatchBlender, gain: float) -> None:
    for hop in blender.hops:
        for parameter in blender.get_submodule(f"conv{hop}2").parameters():
            parameter.mul_(gain)


@torch.no_grad()
def begin_copying(
    base: ImageModel, blenders: list[PatchBlender], batches: Batches, settings: TrainSettings
) -> None:
    """Set blenders to what they would learn slowest: a candidate makes its code likelier.

    Each blender takes the output of the one before it, so each map is fitted to that output.

    Raises:
        InputError: The base expects none of the pictures' codes.
    """
    codes, states = hidden_of_codes(base, batches, settings)
    if not len(codes):
        raise InputError(
            f"the model expects none of the codes of {len(batches.examples)} pictures, so blenders "
            "cannot begin by copying; train with init random, or on pictures that it knows"
        )
    features = normalise(base.embed_codes(codes).float())
    for blender in blenders:
        x, y = features.double(), states.double() * settings.gain
        count, width = x.shape
        ridge = RIDGE * count * torch.eye(width, dtype=x.dtype, device=x.device)
        weight = torch.linalg.solve(x.T @ x + ridge, x.T @ y).T.float()  # [hidden, hidden]
        set_centre(blender, weight)
        features = normalise(features @ weight.T)


@torch.no_grad()
def hidden_of_codes(
    base: ImageModel, batches: Batches, settings: TrainSettings
) -> tuple[Tensor, Tensor]:
    """Codes [C] that the base predicts somewhere, and how its last hidden states differ from their
    mean [C, hidden] where it predicts them, before the final norm."""
    batches = batches.silent()
    device, count = base.device, base.config.vq.codebook_size
    sums = torch.zeros(count, base.hidden_size, device=device)
    weights = torch.zeros(count, device=device)
    states: list[Tensor] = []
    hook = base.final_norm.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    try:
        for first in range(0, min(len(batches.examples), MOST_PICTURES), settings.batch):
            rows = np.arange(first, min(first + settings.batch, len(batches.examples)))
            batch = batches.plain(rows, device)
            final = predicting(base, batch, sequence_states(base, batch))
            chances = base.predict(final).float().softmax(-1)
            sure = chances.gather(-1, batch.tokens[..., None])[..., 0]
            sure = (sure * (batch.weights > 0)).flatten()
            hidden = predicting(base, batch, states.pop()).float().flatten(0, 1)
            sums.index_add_(0, batch.tokens.flatten(), hidden * sure[:, None])
            weights.index_add_(0, batch.tokens.flatten(), sure)
    finally:
        hook.remove()
    codes = torch.nonzero(weights > EXPECTED)[:, 0]
    means = sums[codes] / weights[codes, None]
    return codes, means - means.mean(dim=0)


def normalise(x: Tensor) -> Tensor:
    """x [..., hidden] of root mean square 1, as `retrieval_layernorm` begins."""
    return x / x.square().mean(dim=-1, keepdim=True).add(1e-6).sqrt()


@torch.no_grad()
def set_centre(blender: PatchBlender, weight: Tensor) -> None:
    """Make the blender's C · sigmoid(gate) the matrix `weight` [hidden, hidden], the rest small.

    Of the paths from a candidate through both convolutions to the middle one is taken: through the
    first's last tap as it is, through the second's first tap by the matrix.
    """
    for hop in blender.hops:
        first: Any = blender.get_submodule(f"conv{hop}")
        second: Any = blender.get_submodule(f"conv{hop}2")
        for parameter in (*first.parameters(), *second.parameters()):
            parameter.mul_(SMALL)
        first.weight[..., -1, -1] = torch.eye(blender.hidden)
        second.weight[..., 0, 0] = 2 * weight.cpu()  # the gate begins half open
    for parameter in blender.mlp[-1].parameters():
        parameter.mul_(SMALL)
