"""FAiD in Show-o, slow and obvious: whole sequences, and blenders window by window."""

import torch
import torch.nn.functional as F

from arrag_engine.models.showo.phi import attend_among, rotary_angles, rotate


def window(states, known, grid, position, hop, centre):
    """[hidden, side, side] of the states [N, hidden] of the known tokens around a position."""
    side = 2 * hop + 1
    cells = torch.zeros(side, side, states.shape[1])
    row, column = divmod(position, grid.width)
    for r in range(-hop, hop + 1):
        for c in range(-hop, hop + 1):
            inside = 0 <= row + r < grid.height and 0 <= column + c < grid.width
            other = (row + r) * grid.width + column + c
            if inside and known[other]:
                cells[r + hop, c + hop] = states[other]
    cells[hop, hop] = centre
    return cells.permute(2, 0, 1)


def blended(adapter, layer, states, known, grid, position, centres):
    """f [K, hidden] of one position, by the two convolutions."""
    part = adapter.by_layer[layer]
    blender, found = part.blender, []
    for centre in centres:
        outs = []
        for hop in blender.hops:
            x = window(states, known, grid, position, hop, part.retrieval_layernorm(centre))
            for name in (f"conv{hop}", f"conv{hop}2"):
                conv = blender.get_submodule(name)
                x = F.conv2d(x, conv.weight, conv.bias)
            outs.append(x.flatten())
        u = outs[0]
        if len(outs) == 2:
            one, two = torch.softmax(blender.conv_weights, dim=0)
            u = one * outs[0] + two * outs[1]
        found.append(torch.sigmoid(blender.mlp(u)) * u)
    return torch.stack(found)


def adapted_logits(model, adapter, prompt, tokens, known, codes, strength=1.0):
    """Logits [N, codes] of a picture after a prompt.

    Args:
        codes: Position -> the K retrieved codes, -1 = none, where blenders work.
    """
    v, grid, first = model.config.vocabulary, model.config.grid, len(prompt) + 1
    ids = [*prompt, v.special("soi")]
    ids += [int(t) + v.first_code if k else v.mask for t, k in zip(tokens, known, strict=True)]
    ids.append(v.special("eoi"))
    pads = sum(i == v.special("pad") for i in prompt)
    mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    mask[len(prompt) :] = True
    mask[pads:, :pads] = False
    embed = model.phi.embed_tokens.weight
    x, rotary = embed[torch.tensor(ids)], rotary_angles(model.config.phi, torch.arange(len(ids)))
    state = {
        position: torch.stack(
            [embed[v.first_code + c] if c >= 0 else torch.zeros(x.shape[1]) for c in found]
        )
        for position, found in codes.items()
    }
    for i, layer in enumerate(model.phi.layers):
        part, attention = adapter.by_layer[i], layer.self_attn
        normed = layer.input_layernorm(x)
        q, k, value = (getattr(attention, f"{n}_proj")(normed) for n in "qkv")
        if part.q_proj is not None:
            q = q + strength * part.q_proj(normed)
            value = value + strength * part.v_proj(normed)
        q, k, value = (
            t.unflatten(-1, (-1, attention.head_dim)).transpose(0, 1) for t in (q, k, value)
        )
        q = rotate(attention.q_layernorm(q)[None], rotary)
        k = rotate(attention.k_layernorm(k)[None], rotary)
        seen = attend_among(q, k, value[None], mask)[0].transpose(0, 1).flatten(1)
        x = x + attention.dense(seen) + layer.mlp(normed)
        if part.blender is not None:
            pictures = normed[first:-1]
            for position, centres in state.items():
                f = blended(adapter, i, pictures, known, grid, position, centres)
                x[first + position] += strength * f.mean(dim=0)
                state[position] = f
    hidden = model.phi.final_layernorm(x)[first:-1]
    base = model.head(hidden)
    return base if adapter.gen_head is None else base + strength * (adapter.gen_head(hidden) - base)
