"""Slow, obvious references to compare the engine with: plain loops, no cache, nothing shared."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from arrag_engine.decode.noise import Noise
from arrag_engine.models.llama import make_span


def truncated(weights: list[int], top_k: int, top_p: Fraction) -> list[Fraction]:
    """Exact top-k, then top-p, of integer weights."""
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    order = order[:top_k] if top_k else order
    total = sum(weights[i] for i in order)
    kept, mass = [], Fraction(0)
    for i in order:
        kept.append(i)
        mass += Fraction(weights[i], total)
        if mass >= top_p:
            break
    total = sum(weights[i] for i in kept)
    return [Fraction(w, total) if i in kept else Fraction(0) for i, w in enumerate(weights)]


def philox(seed: int, position: int, count: int) -> list[int]:
    """64-bit words of Philox4x64-10 (Salmon et al. 2011), position in the counter's top word."""
    mask, words = 2**64 - 1, []
    for block in range(1, count // 4 + 2):
        a, b, c, d = block, 0, 0, position
        key0, key1 = seed, 0
        for _ in range(10):
            ab, cd = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
            a, b, c, d = (cd >> 64) ^ b ^ key0, cd & mask, (ab >> 64) ^ d ^ key1, ab & mask
            key0, key1 = (key0 + 0x9E3779B97F4A7C15) & mask, (key1 + 0xBB67AE8584CAA73B) & mask
        words += [a, b, c, d]
    return words[:count]


def neighbours(grid, offsets, position):
    """Positions of the neighbours, None outside the grid."""
    row, column = position // grid.width, position % grid.width
    places = [(row + r, column + c) for r, c in offsets]
    return [
        r * grid.width + c if 0 <= r < grid.height and 0 <= c < grid.width else None
        for r, c in places
    ]


def is_active(grid, offsets, borders, position):
    inside = [n is not None for n in neighbours(grid, offsets, position)]
    return all(inside) if borders == "skip" else any(inside)


def key(vectors, grid, offsets, position):
    """One key: the neighbours' vectors [N, dim] in a row, zeros outside."""
    zero = np.zeros(vectors.shape[1])
    parts = [zero if n is None else vectors[n] for n in neighbours(grid, offsets, position)]
    return np.concatenate(parts).astype(np.float64)


def patches(index, offsets):
    """(key, code, picture, position) of every patch, in index order."""
    vectors = index.codebook[index.tokens] if index.vectors is None else index.vectors
    return [
        (key(vectors[i], index.grid, offsets, p), int(index.tokens[i, p]), i, p)
        for i in range(len(index.tokens))
        for p in range(index.grid.size)
        if is_active(index.grid, offsets, index.spec.borders, p)
    ]


def proposals(found, vocab, options):
    """p_retrieval of [(distance, code)], nearest first: a dictionary walk."""
    found = found[: options.neighbours]
    scores = np.zeros(vocab)
    for distance, code in found:
        if options.duplicates == "first" and scores[code] > 0:
            continue
        scores[code] += math.exp(-(distance - found[0][0]) / options.temperature)
    return scores / scores.sum()


def logits(model, ids, tokens):
    """Logits [vocab] of the next image token: the whole sequence at once, without a cache."""
    text = model.embed_text(torch.tensor([ids]))
    image = model.embed_codes(torch.tensor([list(tokens)], dtype=torch.long))
    return model.logits(torch.cat((text, image), dim=1))[0, -1]


def unguided(prompt, pad_id):
    """Ids of the second stream without a negative prompt."""
    ends = (0, len(prompt) - 1)
    return [word if i in ends else pad_id for i, word in enumerate(prompt)]


def p_model(model, prompt, pad_id, tokens, sampling, negative=None):
    """The model's shaped distribution [vocab] in float64 (temperature only)."""
    blank = negative or unguided(prompt, pad_id)
    cond, uncond = logits(model, prompt, tokens), logits(model, blank, tokens)
    guided = (uncond + sampling.cfg * (cond - uncond)).double()
    return torch.softmax(guided / (sampling.temperature or 1), dim=-1).numpy()


def p_retrieved(index, codebook, offsets, tokens, position, options):
    """What retrieval proposes [vocab] at a position after `tokens`; None where it does not run."""
    if not is_active(index.grid, offsets, index.spec.borders, position):
        return None
    padded = np.zeros(index.grid.size, dtype=int)
    padded[: len(tokens)] = tokens
    query = key(codebook[padded], index.grid, offsets, position)
    rows = [(float(((k - query) ** 2).sum()), code) for k, code, _, _ in patches(index, offsets)]
    return proposals(sorted(rows, key=lambda r: r[0]), len(codebook), options)


def picture(
    model, prompt, pad_id, sampling, seed, index=None, offsets=(), options=None, negative=None
):
    """Tokens of one picture, one at a time, everything worked out afresh for each."""
    grid, vocab = model.config.grid, model.config.vq.codebook_size
    codebook = model.vq.quantize.rows(torch.device("cpu")).numpy()
    tokens: list[int] = []
    for position in range(grid.size):
        noise = Noise(seed, position, vocab)
        p = p_model(model, prompt, pad_id, tokens, sampling, negative)
        retrieved = index and p_retrieved(index, codebook, offsets, tokens, position, options)
        if retrieved is not None and sampling.temperature == 0:
            p = (1 - options.weight) * p + options.weight * retrieved
        elif retrieved is not None and noise.uniform < options.weight:
            p = retrieved
        with np.errstate(divide="ignore"):
            scores = np.log(p) + (noise.gumbel.numpy() if sampling.temperature else 0)
        tokens.append(int(scores.argmax()))
    return tokens


def blender_output(tensors, layer, hops, drawn, grid, position, centres):
    """f [K, hidden] of one blender as its checkpoint says, window by window.

    Args:
        tensors: Blenders by their official names.
        drawn: Hidden states [n, hidden] of the tokens before `position`.
        centres: [K, hidden].
    """
    prefix = f"language_model.model.layers.{layer}.blender."
    own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    row, column = divmod(position, grid.width)
    means = []
    for hop in hops:
        side = 2 * hop + 1
        windows = torch.zeros(len(centres), centres.shape[1], side, side)
        for r in range(side):
            for c in range(side):
                i, j = row + r - hop, column + c - hop
                place = i * grid.width + j
                inside = 0 <= i < grid.height and 0 <= j < grid.width
                if inside and place < position:
                    windows[:, :, r, c] = drawn[place]
        windows[:, :, hop, hop] = centres
        for conv in (f"conv{hop}", f"conv{hop}2"):
            windows = F.conv2d(windows, own[f"{conv}.weight"], own[f"{conv}.bias"])
        means.append(windows[:, :, 0, 0])
    u = means[0]
    if len(hops) == 2:
        share = own["conv_weights"].softmax(0)
        u = share[0] * means[0] + share[1] * means[1]
    gate = torch.relu(u @ own["mlp.0.weight"].T + own["mlp.0.bias"])
    return torch.sigmoid(gate @ own["mlp.2.weight"].T + own["mlp.2.bias"]) * u


def faid_run(
    model, tensors, layers, hops, prompt, tokens, codes, active, semantics="step", strength=1.0
):
    """Everything of one pass over a prompt and the n tokens after it: `logits` [T + n, vocab],
    `features` (f of every blender) [predicted positions, layers, K, hidden], `hidden` (what the
    layers with a blender normalise) [layers, T + n, hidden].

    Args:
        codes: For each predicted position, K retrieved codes, -1 = none.
        active: For each of them, whether retrieval runs.
    """
    llama, grid, first = model.llama, model.config.grid, len(prompt) - 1
    text = model.embed_text(torch.tensor(prompt))
    x = torch.cat((text, model.embed_codes(torch.tensor(list(tokens), dtype=torch.long))))[None]
    span = make_span(llama.config, [0], x.shape[1], x.device)
    positions = range(min(len(tokens) + 1, grid.size))
    eps, features, hidden, former = llama.config.rms_norm_eps, [], [], None
    for number, layer in enumerate(llama.layers):
        h = layer.input_layernorm(x)
        x = x + layer.self_attn(h, span, None, number)
        if number in layers:
            hidden.append(h[0])
            outputs = []
            for i in positions:
                heard = active[i] or (former is not None and semantics == "step")
                given = centres(model, tensors, number, codes[i], former and former[i], eps)
                drawn = h[0, first + 1 :]
                outputs.append(
                    blender_output(tensors, number, hops, drawn, grid, i, given * float(heard))
                )
            former = outputs
            features.append(torch.stack(outputs))
            added = torch.zeros_like(x)
            for i in positions:
                added[0, first + i] = strength * outputs[i].mean(0)
            x = x + added
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    logits = model.gen_head(llama.norm(x))[0]
    return SimpleNamespace(
        logits=logits, features=torch.stack(features, 1), hidden=torch.stack(hidden)
    )


def faid_logits(model, tensors, layers, hops, prompt, *rest):
    """(logits [n + 1, vocab] that predict positions 0 .. n, f of every blender), as `faid_run`."""
    run = faid_run(model, tensors, layers, hops, prompt, *rest)
    return run.logits[len(prompt) - 1 :], run.features


def centres(model, tensors, layer, codes, former, eps):
    """RMS-normalised candidates [K, hidden]: embedded codes, or the former blender's output."""
    if former is None:
        empty = torch.zeros(model.config.llama.hidden_size)
        former = torch.stack(
            [empty if c < 0 else model.embed_codes(torch.tensor(c)) for c in codes]
        )
    weight = tensors[f"language_model.model.layers.{layer}.retrieval_layernorm.weight"]
    return former / (former.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def faid_picture(
    model, blenders, prompt, pad_id, sampling, seed, index, offsets, k, options=None,
    semantics="step", strength=1.0, negative=None,
):  # fmt: skip
    """Tokens of one picture drawn with blenders (tensors, layers, hops), DAiD on top with options.

    The unconditional stream hears nothing.
    """
    grid, vocab = model.config.grid, model.config.vq.codebook_size
    codebook = model.vq.quantize.rows(torch.device("cpu")).numpy()
    blank = negative or unguided(prompt, pad_id)
    rows, tokens, codes, active = patches(index, offsets), [], [], []
    for position in range(grid.size):
        padded = np.zeros(grid.size, dtype=int)
        padded[:position] = tokens
        active.append(is_active(grid, offsets, index.spec.borders, position))
        found = [-1] * k
        if active[-1]:
            query = key(codebook[padded], grid, offsets, position)
            found = sorted((float(((row - query) ** 2).sum()), code) for row, code, _, _ in rows)
            found = [code for _, code in found[:k]]
        codes.append(found)
        cond, _ = faid_logits(model, *blenders, prompt, tokens, codes, active, semantics, strength)
        cond, uncond = cond[-1], logits(model, blank, tokens)
        guided = (uncond + sampling.cfg * (cond - uncond)).double()
        p = torch.softmax(guided / (sampling.temperature or 1), dim=-1).numpy()
        noise = Noise(seed, position, vocab)
        if options is not None and active[-1] and noise.uniform < options.weight:
            p = p_retrieved(index, codebook, offsets, tokens, position, options)
        with np.errstate(divide="ignore"):
            scores = np.log(p) + (noise.gumbel.numpy() if sampling.temperature else 0)
        tokens.append(int(scores.argmax()))
    return tokens
