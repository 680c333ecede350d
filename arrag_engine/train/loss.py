"""The loss of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..faid import FaidAdapter
from ..models.families import ImageModel
from .data import Batch
from .forced import forced_logits, picture_hook
from .settings import TrainSettings


class Learner(nn.Module):
    """The frozen base and the adapter in training: maps a batch to its losses."""

    def __init__(
        self,
        base: ImageModel,
        adapter: FaidAdapter,
        settings: TrainSettings,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.base = (base,)  # in a tuple, so that it is no submodule: neither trained nor broadcast
        self.adapter = adapter
        self.settings = settings
        self.checkpointing = checkpointing

    def forward(self, batch: Batch) -> Tensor:
        """Cross entropy (nats) of each picture's tokens [B, N], times their weights; where the base
        drew the picture itself, of its distribution at each token."""
        [base] = self.base
        checkpointing = self.checkpointing and self.training
        hook = picture_hook(base, self.adapter, batch, self.settings.semantics, checkpointing)
        logits = forced_logits(base, batch, hook)
        losses = token_losses(logits, batch.tokens)
        if batch.own.any():
            own = torch.nonzero(batch.own)[:, 0]
            losses = losses.index_copy(0, own, self.kept_losses(batch.take(own), logits[own]))
        return losses * batch.weights

    def kept_losses(self, batch: Batch, logits: Tensor) -> Tensor:
        """Cross entropy (nats) [B, N] of the base's distributions for a batch under logits
        [B, N, codes]. A whole distribution has more information than one token drawn
        from it: fewer pictures suffice, and the base's uncertainty is kept."""
        with torch.no_grad():
            wanted = forced_logits(self.base[0], batch).float().softmax(-1)
        return -(wanted * logits.float().log_softmax(-1)).sum(-1)


def base_losses(base: ImageModel, batch: Batch) -> Tensor:
    """The losses [B, N] of the base alone."""
    return token_losses(forced_logits(base, batch), batch.tokens) * batch.weights


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross entropy (nats) [B, N] of tokens [B, N] under logits [B, N, codes]."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none")
    return losses.view_as(tokens)
