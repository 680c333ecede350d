"""Guidance and shaping."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arrag_engine.errors import InputError
from arrag_engine.sampling import guide, model_distribution, truncate
from arrag_engine.settings import Sampling
from tests import slow


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
