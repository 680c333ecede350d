"""The decoder against plain arithmetic, and cached against uncached."""

import math

import pytest
import torch

from arrag_engine.models.llama import KVCache, Llama, LlamaConfig, make_span

CPU = torch.device("cpu")


def config(kv_heads=4, **changes):
    return LlamaConfig(30, 32, 48, 3, 4, kv_heads, **changes)


def llama(config, seed=0):
    torch.manual_seed(seed)
    model = Llama(config).eval()
    for parameter in model.parameters():
        parameter.normal_(0.2, 0.3)
    return model


def cache_for(config, rows, capacity=20):
    return KVCache(config, rows, capacity, CPU, torch.float32)


def plain_rms(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def plain_rotate(vector, position, theta):
    """Pairs (i, i + d/2) turned as complex numbers."""
    half = len(vector) // 2
    pairs = torch.complex(vector[:half], vector[half:])
    angles = torch.tensor([position * theta ** (-2 * i / len(vector)) for i in range(half)])
    turned = pairs * torch.polar(torch.ones(half), angles)
    return torch.cat((turned.real, turned.imag))


def plain_attention(layer, x, config):
    """One head and one position at a time [L, hidden]."""
    attention, d = layer.self_attn, config.head_dim
    q, k, v = (p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    out = torch.zeros_like(x)
    for head in range(config.num_heads):
        kv = head // (config.num_heads // config.num_kv_heads)
        rows, kv_rows = slice(head * d, head * d + d), slice(kv * d, kv * d + d)
        keys = [plain_rotate(k[kv_rows] @ h, j, config.rope_theta) for j, h in enumerate(x)]
        for i, h in enumerate(x):
            query = plain_rotate(q[rows] @ h, i, config.rope_theta)
            scores = torch.stack([query @ key / math.sqrt(d) for key in keys[: i + 1]])
            out[i, rows] = scores.softmax(0) @ torch.stack([v[kv_rows] @ h for h in x[: i + 1]])
    return out @ attention.o_proj.weight.T


def plain_llama(model, x):
    config = model.config
    for layer in model.layers:
        h = plain_rms(x, layer.input_layernorm.weight, config.rms_norm_eps)
        x = x + plain_attention(layer, h, config)
        h = plain_rms(x, layer.post_attention_layernorm.weight, config.rms_norm_eps)
        gate, up = h @ layer.mlp.gate_proj.weight.T, h @ layer.mlp.up_proj.weight.T
        x = x + (gate * torch.sigmoid(gate) * up) @ layer.mlp.down_proj.weight.T
    return plain_rms(x, model.norm.weight, config.rms_norm_eps)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("changes", [{}, {"rope_theta": 500.0, "rms_norm_eps": 0.1}])
def test_the_decoder_equals_plain_arithmetic(kv_heads, changes):
    model = llama(config(kv_heads, **changes))
    x = torch.randn(2, 7, 32)
    found = model(x)
    for row in range(2):
        torch.testing.assert_close(found[row], plain_llama(model, x[row]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("pieces", [[1] * 9, [4, 5], [3, 1, 1, 4], [9], [1, 8]])
def test_pieces_through_a_cache_equal_the_whole(kv_heads, pieces):
    model = llama(config(kv_heads))
    x = torch.randn(3, 9, 32)
    cache, done, found = cache_for(model.config, 3), 0, []
    for piece in x.split(pieces, dim=1):
        found.append(model(piece, [done] * 3, cache))
        done += piece.shape[1]
    torch.testing.assert_close(torch.cat(found, 1), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 3])
def test_rows_of_a_batch_may_stand_at_different_positions(count):
    model = llama(config(2))
    x = torch.randn(3, 9, 32)
    cache, starts = cache_for(model.config, 3), [2, 6, 4]
    model(x[:, :8], [0] * 3, cache)  # leaves later keys behind, which nobody may see
    piece = torch.stack([row[a : a + count] for row, a in zip(x, starts, strict=True)])
    found = model(piece, starts, cache)
    whole = model(x)
    for row, start in enumerate(starts):
        wanted = whole[row, start : start + count]
        torch.testing.assert_close(found[row], wanted, atol=1e-5, rtol=1e-4)


def test_a_rejected_guess_leaves_no_mark():
    model = llama(config())
    x = torch.randn(1, 9, 32)
    cache = cache_for(model.config, 1)
    model(x[:, :3], [0], cache)
    model(torch.randn(1, 5, 32), [3], cache)
    found = model(x[:, 3:6], [3], cache)
    torch.testing.assert_close(found, model(x)[:, 3:6], atol=1e-5, rtol=1e-4)


def test_a_cache_written_row_by_row_holds_each_row_at_its_place():
    cache = cache_for(config(), 2, 8)
    k, v = torch.randn(2, 4, 2, 8), torch.randn(2, 4, 2, 8)
    cache.write(1, make_span(config(), [1, 5], 2, torch.device("cpu")), k, v)
    keys, values = cache.read(1, 8)
    assert torch.equal(keys[0, :, 1:3], k[0])
    assert torch.equal(values[1, :, 5:7], v[1])
    assert keys[0, :, 3:].count_nonzero() == 0
    assert cache.read(0, 8)[0].count_nonzero() == 0


def test_neither_batch_nor_window_changes_a_bit():
    """What a picture is made of must not depend on what is computed beside it."""
    model = llama(config())
    x = torch.randn(3, 9, 32)
    alone = []
    for row in x:
        cache = cache_for(model.config, 1)
        alone.append(torch.cat([model(row[None, i : i + 1], [i], cache) for i in range(9)], dim=1))
    alone = torch.cat(alone)
    cache, starts = cache_for(model.config, 3), [0, 2, 4]
    for row, start in enumerate(starts):  # bring each row to its own place
        if start:
            single = cache_for(model.config, 1)
            for i in range(start):
                model(x[row : row + 1, i : i + 1], [i], single)
            cache.keys[:, row], cache.values[:, row] = single.keys[:, 0], single.values[:, 0]
    piece = torch.stack([row[a : a + 5] for row, a in zip(x, starts, strict=True)])
    found = model(piece, starts, cache)
    for row, start in enumerate(starts):
        assert torch.equal(found[row], alone[row, start : start + 5])
