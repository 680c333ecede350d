"""Guidance, shaping, noise, and drawing."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from arrag_engine.errors import InputError
from arrag_engine.sampling import (
    Noise,
    Sampling,
    draw,
    guide,
    model_distribution,
    position_noise,
    truncate,
)
from tests import slow


def noise_with(gumbel):
    return Noise(0.5, torch.tensor(gumbel, dtype=torch.float32))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cfg", -0.1),
        ("cfg", 101),
        ("cfg", float("nan")),
        ("temperature", -1),
        ("temperature", 1e-40),
        ("temperature", 5e-324),
        ("temperature", float("inf")),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name_and_value(field, value):
    with pytest.raises(InputError, match=f"{field} is {value}"):
        Sampling(**{field: value})


def test_guidance_moves_from_the_unconditional_towards_the_conditional():
    cond, uncond = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
    stacked = torch.cat((cond, uncond))
    torch.testing.assert_close(guide(stacked, 5.0), uncond + 5 * (cond - uncond))
    torch.testing.assert_close(guide(stacked, 0.0), uncond)


def test_guidance_of_one_is_the_conditional_stream_alone():
    cond = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)
    assert torch.equal(guide(cond, 1), cond.float())


def test_guidance_pairs_each_picture_with_its_own_unconditional_row():
    stacked = torch.tensor([[1.0], [2.0], [10.0], [20.0]])
    assert guide(stacked, 2.0).tolist() == [[-8.0], [-16.0]]


WEIGHTS = st.lists(st.integers(0, 6), min_size=2, max_size=12).filter(any)


@given(WEIGHTS, st.integers(0, 13), st.integers(1, 64))
def test_truncating_equals_exact_arithmetic(weights, top_k, eighths):
    """Borders are exact: probabilities are kept apart from p by more than rounding."""
    p = Fraction(eighths, 64) - Fraction(1, 1009)  # prime: no partial sum of the weights hits it
    probs = torch.tensor(weights, dtype=torch.float32) / sum(weights)
    found = truncate(probs, top_k, float(p))
    wanted = slow.truncated(weights, min(top_k, len(weights)), p)
    np.testing.assert_allclose(found.numpy(), [float(w) for w in wanted], atol=2e-6)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.5, [0]), (0.51, [0, 1]), (0.75, [0, 1]), (0.76, [0, 1, 2]), (1e-9, [0])]
)
def test_the_token_that_crosses_p_stays_and_the_one_after_goes(top_p, kept):
    probs = torch.tensor([0.5, 0.25, 0.125, 0.125])
    assert truncate(probs, 0, top_p).nonzero().flatten().tolist() == kept


@pytest.mark.parametrize(("top_k", "top_p"), [(2, 1.0), (0, 0.6), (2, 0.9)])
def test_ties_go_to_the_lower_id(top_k, top_p):
    probs = torch.tensor([0.1, 0.3, 0.3, 0.3])
    assert truncate(probs, top_k, top_p).tolist() == [0, 0.5, 0.5, 0]


def test_ties_go_to_the_lower_id_in_a_whole_vocabulary():
    """Unstable sorts only show above a few dozen elements."""
    kept = truncate(torch.full((16384,), 1 / 16384), 100, 1.0)
    assert kept.nonzero().flatten().tolist() == list(range(100))


def test_keeping_everything_changes_no_bit():
    probs = torch.rand(3, 50).softmax(-1)
    assert truncate(probs, 0, 1.0) is probs
    assert truncate(probs, 50, 1.0) is probs


def test_rows_are_truncated_one_by_one():
    probs = torch.rand(4, 5, 30).softmax(-1)
    rows = [truncate(row, 7, 0.4) for row in probs.view(20, 30)]
    torch.testing.assert_close(truncate(probs, 7, 0.4).view(20, 30), torch.stack(rows))


@given(WEIGHTS, st.integers(0, 8), st.floats(0.01, 1))
def test_truncating_keeps_the_order_and_adds_nothing(weights, top_k, top_p):
    probs = torch.tensor(weights, dtype=torch.float32) / sum(weights)
    found = truncate(probs, top_k, top_p)
    kept = found > 0
    assert kept.any()
    assert not (kept & (probs == 0)).any()
    if (~kept).any():
        assert probs[kept].min() >= probs[~kept].max()
    if top_k:
        assert kept.sum() <= top_k


def test_temperature_comes_before_top_k_and_top_k_before_top_p():
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0])
    found = model_distribution(logits, Sampling(temperature=2.0, top_k=3, top_p=0.8))
    p = np.exp([1.5, 1.0, 0.5])
    p /= p.sum()  # 0.506, 0.307, 0.186: two reach 0.8, of all four tokens only three would
    np.testing.assert_allclose(found.numpy(), [*(p[:2] / p[:2].sum()), 0, 0], atol=1e-6)


def test_logits_of_low_precision_are_shaped_in_float32():
    logits = torch.randn(20, dtype=torch.bfloat16)
    found = model_distribution(logits, Sampling(temperature=0.7))
    torch.testing.assert_close(found, torch.softmax(logits.float() / 0.7, -1))


@pytest.mark.parametrize("temperature", [1e-4, 1e-3])
def test_a_tiny_temperature_approaches_the_most_probable_token(temperature):
    found = model_distribution(torch.tensor([3.0, 9.0, -4.0]), Sampling(temperature=temperature))
    assert found.tolist() == [0, 1, 0]


def test_greedy_takes_the_most_probable_and_the_lower_id_on_a_tie():
    assert draw(torch.tensor([0.1, 0.4, 0.4, 0.1]), None) == 1


def test_a_token_of_probability_zero_is_never_drawn():
    probs = torch.tensor([0.0, 1.0, 0.0])
    assert draw(probs, noise_with([50.0, -50.0, 50.0])) == 1


def test_the_golden_noise_of_a_few_positions():
    """Written down once: a picture must look the same after every update."""
    wanted = {
        (0, 0): (0.0115467543, [-0.351137, -0.785907, 0.558675]),
        (0, 1): (0.3421827847, [0.596465, -0.894395, 0.791216]),
        (12345, 575): (0.1384403425, [1.493495, 1.357055, 0.338569]),
        (2**64 - 1, 3): (0.1168144515, [0.182934, 0.545355, -0.826251]),
    }
    for (seed, position), (uniform, gumbel) in wanted.items():
        noise = position_noise(seed, position, 1000)
        assert noise.uniform == pytest.approx(uniform, abs=1e-9)
        np.testing.assert_allclose(noise.gumbel[:3].numpy(), gumbel, rtol=1e-5)


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (99, 575), (2**64 - 1, 1)])
def test_noise_comes_from_the_published_philox_generator(seed, position):
    bits = slow.philox(seed, position, 9)
    uniform = [(b + 0.5) / 2**64 for b in bits]
    noise = position_noise(seed, position, 8)
    assert noise.uniform == pytest.approx(uniform[0], abs=1e-12)
    np.testing.assert_allclose(noise.gumbel, -np.log(-np.log(uniform[1:])), rtol=1e-5)


def test_noise_does_not_depend_on_the_size_of_the_vocabulary():
    small, large = position_noise(7, 5, 10), position_noise(7, 5, 1000)
    assert small.uniform == large.uniform
    assert torch.equal(small.gumbel, large.gumbel[:10])


def test_seeds_wrap_at_two_to_the_64():
    assert torch.equal(position_noise(2**64 + 9, 2, 50).gumbel, position_noise(9, 2, 50).gumbel)
    assert torch.equal(position_noise(-1, 2, 50).gumbel, position_noise(2**64 - 1, 2, 50).gumbel)


def test_noise_of_positions_and_seeds_is_unrelated():
    rows = [
        position_noise(seed, position, 4096).gumbel.numpy()
        for seed in range(4)
        for position in range(6)
    ]
    related = np.abs(np.corrcoef(rows) - np.eye(24))
    assert related.max() < 0.08  # 5 standard deviations of 1 / sqrt(4096)
    flat = np.concatenate(rows)
    assert len(np.unique(flat)) > 0.95 * len(flat)


def test_noise_is_gumbel_and_the_choice_of_component_uniform():
    noises = [position_noise(3, position, 200) for position in range(400)]
    gumbel = torch.cat([n.gumbel for n in noises]).numpy()
    assert stats.kstest(gumbel, "gumbel_r").pvalue > 1e-3
    assert stats.kstest([n.uniform for n in noises], "uniform").pvalue > 1e-3


@pytest.mark.parametrize("bits", [0, 2**64 - 1])
def test_noise_is_finite_for_every_random_number(monkeypatch, bits):
    class Constant:
        def __init__(self, **_):
            pass

        def random_raw(self, count):
            return np.full(count, bits, dtype=np.uint64)

    monkeypatch.setattr(np.random, "Philox", Constant)
    noise = position_noise(0, 0, 4)
    assert 0 < noise.uniform < 1
    assert torch.isfinite(noise.gumbel).all()


def test_draws_have_the_distribution_they_are_drawn_from():
    probs = truncate(
        torch.softmax(torch.randn(24, generator=torch.Generator().manual_seed(1)), -1), 12, 1.0
    )
    drawn = [draw(probs, position_noise(seed, 17, 24)) for seed in range(4000)]
    counts = np.bincount(drawn, minlength=24)
    kept = probs.numpy() > 0
    assert counts[~kept].sum() == 0
    wanted = probs.double().numpy()[kept]
    assert stats.chisquare(counts[kept], wanted / wanted.sum() * 4000).pvalue > 1e-3
