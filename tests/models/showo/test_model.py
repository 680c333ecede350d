"""The decoder: text computed once is the whole sequence behind the official mask."""

import pytest
import torch

from arrag_engine.models.showo.model import Vocabulary
from tests.models.slow_showo import slow_logits
from tests.tiny_showo import crooked_showo_config, tiny_showo, tiny_showo_config

WORDS = [3, 1, 4, 2]


def prompts_of(model, *texts):
    """Prompts of one length, with pads on their left."""
    v = model.config.vocabulary
    rows = [[v.special("t2i"), 1, *words, 1] for words in texts]
    longest = max(map(len, rows))
    return torch.tensor([[v.special("pad")] * (longest - len(row)) + row for row in rows])


def picture_of(model, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = (rows, model.grid.size)
    tokens = torch.randint(model.vocab, size, generator=generator)
    return tokens, torch.rand(size, generator=generator) < 0.4


@pytest.mark.parametrize(
    "config",
    [
        tiny_showo_config(),
        tiny_showo_config(kv_heads=2),
        tiny_showo_config(kv_heads=1, rotary_dim=8),
        tiny_showo_config(rotary_dim=2, rope_theta=50.0),
        crooked_showo_config(),
    ],
    ids=["tiny", "grouped", "whole heads turn", "another base", "crooked"],
)
def test_text_computed_once_equals_the_whole_sequence(config):
    model = tiny_showo(3, config)
    prompts = prompts_of(model, WORDS, [])
    tokens, known = picture_of(model, 4)
    logits = model.masked_logits(model.open(prompts), tokens, known)
    for row in range(4):
        wanted = slow_logits(model, prompts[row // 2].tolist(), tokens[row], known[row])
        torch.testing.assert_close(logits[row], wanted, atol=2e-5, rtol=1e-5)


def test_the_number_of_pads_changes_no_bit():
    model = tiny_showo()
    short, long = prompts_of(model, WORDS), prompts_of(model, WORDS, [3] * 8)[:1]
    assert len(short[0]) < len(long[0])
    tokens, known = picture_of(model, 1)
    one, other = (model.masked_logits(model.open(ids), tokens, known) for ids in (short, long))
    assert torch.equal(one, other)


def test_a_picture_has_the_same_bits_in_any_company():
    model = tiny_showo()
    opened = model.open(prompts_of(model, WORDS, []))
    tokens, known = picture_of(model, 6)
    together = model.masked_logits(opened, tokens, known)
    for i in range(3):
        rows = [i, 3 + i]
        alone = model.masked_logits(opened, tokens[rows], known[rows])
        assert torch.equal(alone, together[rows])


def test_what_is_not_known_has_no_influence_and_what_is_has():
    model = tiny_showo()
    opened = model.open(prompts_of(model, WORDS))
    tokens, known = picture_of(model, 1)
    wanted = model.masked_logits(opened, tokens, known)
    hidden = tokens.where(known, (tokens + 1) % model.vocab)
    assert torch.equal(model.masked_logits(opened, hidden, known), wanted)
    shown = tokens.where(~known, (tokens + 1) % model.vocab)
    assert not torch.equal(model.masked_logits(opened, shown, known), wanted)


def test_ids_lie_where_the_released_ones_do():
    v = Vocabulary(58498, 8192)
    assert (v.text, v.first_code, v.mask) == (50295, 50305, 58497)
    found = [v.special(name) for name in ("pad", "soi", "eoi", "t2i", "lvg")]
    assert found == [50295, 50296, 50297, 50300, 50304]
