"""Show-o the official way, slow and obvious: a whole sequence in every pass."""

import torch
from torch import Tensor

from arrag_engine.models.showo.phi import attend_among


class Masked:
    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, layer, q, k, v):
        return attend_among(q, k, v, self.mask)


def slow_logits(model, prompt, tokens, known):
    """The official way: everything in one sequence, the mask written out cell by cell."""
    v = model.config.vocabulary
    ids = [*prompt, v.special("soi")]
    ids += [
        int(token) + v.first_code if stands else v.mask
        for token, stands in zip(tokens, known, strict=True)
    ]
    ids.append(v.special("eoi"))
    pads = sum(i == v.special("pad") for i in prompt)
    mask = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for row in range(len(ids)):
        for column in range(len(ids)):
            if row >= len(prompt):
                mask[row, column] = column >= pads
            elif row >= pads:
                mask[row, column] = pads <= column <= row
            else:
                mask[row, column] = column <= row
    x = model.embed(torch.tensor([ids]))
    hidden = model.phi(x, torch.arange(len(ids)), Masked(mask[None, None]))
    return model.head(hidden[0, len(prompt) + 1 : -1])
