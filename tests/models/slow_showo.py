"""Show-o the official way, slow and obvious: a whole sequence in every pass."""

import math

import torch
from torch import Tensor

from arrag_engine.models.showo.phi import attend_among, rotary_angles


class Masked:
    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, layer, q, k, v):
        return attend_among(q, k, v, self.mask)


def slow_states(model, prompt, tokens, known):
    """The official way: everything in one sequence, the mask written out cell by cell.

    Returns:
        [L, hidden] of the embedding, of all layers but the last, and after the final norm.
    """
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
    states, rotary = [x], rotary_angles(model.config.phi, torch.arange(len(ids)))
    for i, layer in enumerate(model.phi.layers):
        states.append(layer(states[-1], rotary, Masked(mask[None, None]), i)[0])
    states[-1] = model.phi.final_layernorm(states[-1])
    return [state[0] for state in states]


def slow_logits(model, prompt, tokens, known):
    """Logits [N, codes] of a picture."""
    hidden = slow_states(model, prompt, tokens, known)[-1]
    return model.head(hidden[len(prompt) + 1 : -1])


def slow_share(settings, t):
    """The official schedules, in float32."""
    name, t = settings["mask_schedule"], torch.tensor(t)
    if name == "cosine":
        return torch.cos(t * math.pi * 0.5)
    if name == "sigmoid":
        start, end, tau = (settings["mask_schedule_params"][n] for n in ("start", "end", "tau"))
        first, last = (torch.sigmoid(torch.tensor(x / tau)) for x in (start, end))
        share = (last - torch.sigmoid((t * (end - start) + start) / tau)) / (last - first)
    else:
        share = 1 - t ** (1.0 if name == "linear" else float(name.removeprefix("pow")))
    return share.clamp(1e-6, 1.0)
