"""The loss of a batch, and the adapter before its first update."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..faid import FaidAdapter, forced_states, whole_picture
from ..janus import JanusPro
from .data import Batch
from .settings import TrainSettings


class Learner(nn.Module):
    """The frozen base and the adapter that learns: a batch goes in, losses come out."""

    def __init__(
        self,
        base: JanusPro,
        adapter: FaidAdapter,
        settings: TrainSettings,
        active: Tensor,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.base = (base,)  # in a tuple, so that it is no part of what is trained and sent around
        self.adapter = adapter
        self.settings = settings
        self.active = active
        self.checkpointing = checkpointing

    def forward(self, batch: Batch) -> Tensor:
        """Mean cross entropy (nats a token) of each picture [B]."""
        [base] = self.base
        extra = whole_picture(
            base,
            self.adapter,
            batch.codes,
            self.active,
            batch.text.shape[1],
            self.settings.semantics,
            batch.blended,
            self.checkpointing and self.training,
        )
        states = forced_states(base, batch.text, batch.tokens[:, :-1], extra, batch.padding)
        predicting = states[:, -batch.tokens.shape[1] :]
        return picture_losses(base.predict(predicting, extra), batch.tokens)


def base_losses(base: JanusPro, batch: Batch) -> Tensor:
    """The losses [B] of the base alone."""
    states = forced_states(base, batch.text, batch.tokens[:, :-1], None, batch.padding)
    return picture_losses(base.predict(states[:, -batch.tokens.shape[1] :]), batch.tokens)


def picture_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross entropy (nats a token) [B] of tokens [B, N] under logits [B, N, codes]."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none")
    return losses.view_as(tokens).mean(dim=1)


def new_adapter(base: JanusPro, settings: TrainSettings) -> FaidAdapter:
    """An adapter in float32 that changes nothing yet, but for what its blenders put out."""
    torch.manual_seed(settings.seed)
    adapter = FaidAdapter(base.config, settings.adapter(base.config.llama.num_layers))
    for layer in adapter.by_layer.values():
        for low_rank in (layer.q_proj, layer.v_proj):
            if low_rank is not None:
                nn.init.zeros_(low_rank.lora_B.weight)
        if layer.blender is not None and settings.init == "zero":
            for hop in layer.blender.hops:
                for parameter in layer.blender.get_submodule(f"conv{hop}2").parameters():
                    nn.init.zeros_(parameter)
    if adapter.gen_head is not None:
        adapter.gen_head.load_state_dict(base.gen_head.state_dict())
    return adapter
