"""The loss of a batch."""

from __future__ import annotations

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
        """Cross entropy (nats) of each picture's tokens [B, N]."""
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
        return token_losses(base.predict(predicting, extra), batch.tokens)


def base_losses(base: JanusPro, batch: Batch) -> Tensor:
    """The losses [B, N] of the base alone."""
    states = forced_states(base, batch.text, batch.tokens[:, :-1], None, batch.padding)
    return token_losses(base.predict(states[:, -batch.tokens.shape[1] :]), batch.tokens)


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross entropy (nats) [B, N] of tokens [B, N] under logits [B, N, codes]."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none")
    return losses.view_as(tokens)
