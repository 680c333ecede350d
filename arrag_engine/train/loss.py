"""The loss of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..faid import FaidAdapter, forced_states, whole_picture
from ..models.janus.model import JanusPro
from .data import Batch
from .settings import TrainSettings


class Learner(nn.Module):
    """The frozen base and the adapter in training: maps a batch to its losses."""

    def __init__(
        self,
        base: JanusPro,
        adapter: FaidAdapter,
        settings: TrainSettings,
        active: Tensor,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.base = (base,)  # in a tuple, so that it is no submodule: neither trained nor broadcast
        self.adapter = adapter
        self.settings = settings
        self.active = active
        self.checkpointing = checkpointing

    def forward(self, batch: Batch) -> Tensor:
        """Cross entropy (nats) of each picture's tokens [B, N]; where the base drew the picture
        itself, of its distribution at each token."""
        [base] = self.base
        hook = whole_picture(
            base,
            self.adapter,
            batch.codes,
            self.active,
            batch.text.shape[1],
            self.settings.semantics,
            batch.blended,
            self.checkpointing and self.training,
        )
        states = forced_states(base, batch.text, batch.tokens[:, :-1], hook, batch.padding)
        predicting = states[:, -batch.tokens.shape[1] :]
        logits = base.predict(predicting, hook)
        losses = token_losses(logits, batch.tokens)
        if not batch.own.any():
            return losses
        own = torch.nonzero(batch.own)[:, 0]
        return losses.index_copy(0, own, self.kept_losses(batch, own, logits[own]))

    def kept_losses(self, batch: Batch, rows: Tensor, logits: Tensor) -> Tensor:
        """Cross entropy (nats) [R, N] of the base's distributions for some rows of a batch under
        logits [R, N, codes]. A whole distribution has more information than one token drawn
        from it: fewer pictures suffice, and the base's uncertainty is kept."""
        with torch.no_grad():
            wanted = base_logits(self.base[0], batch, rows).float().softmax(-1)
        return -(wanted * logits.float().log_softmax(-1)).sum(-1)


def base_losses(base: JanusPro, batch: Batch) -> Tensor:
    """The losses [B, N] of the base alone."""
    rows = torch.arange(len(batch.tokens), device=batch.tokens.device)
    return token_losses(base_logits(base, batch, rows), batch.tokens)


def base_logits(base: JanusPro, batch: Batch, rows: Tensor) -> Tensor:
    """Logits [R, N, codes] of the base alone for some rows of a batch."""
    padding = [batch.padding[row] for row in rows.tolist()]
    states = forced_states(base, batch.text[rows], batch.tokens[rows, :-1], None, padding)
    return base.predict(states[:, -batch.tokens.shape[1] :])


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross entropy (nats) [B, N] of tokens [B, N] under logits [B, N, codes]."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none")
    return losses.view_as(tokens)
