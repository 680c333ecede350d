"""Guidance and shaping."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from arrag_engine.errors import InputError
from arrag_engine.sampling import (
    ONE,
    guide,
    keep_top,
    model_distribution,
    shape_distribution,
    share,
    to_mass,
    truncate,
)
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


FLOATS = st.lists(
    st.sampled_from([0.0, 1e-14, 2.0**-41, 0.1, 0.1, 0.25, 0.3]) | st.floats(0, 1, width=32),
    min_size=1,
    max_size=20,
).filter(lambda values: sum(values) > 1e-3)


def normalised(values):
    """Probabilities float32 of weights."""
    return torch.tensor(values, dtype=torch.float32) / sum(values)


@given(FLOATS, st.integers(0, 21), st.floats(1e-6, 1, exclude_max=True), st.integers(0, 19))
def test_what_is_kept_is_exact_to_the_last_unit_of_mass(values, top_k, top_p, border):
    """Half of the borders are put exactly where a token ends."""
    probs = normalised(values)
    ranked = probs.sort(descending=True).values
    if border < len(ranked) and 0 < float(ranked[: border + 1].sum()) < 1:
        top_p = float(ranked[: border + 1].sum())
    masses = [round(Fraction(p) * ONE) for p in probs.tolist()]
    cut = 0 < top_k < len(masses)
    p = Fraction(max(1, round(Fraction(float(torch.tensor(top_p))) * ONE)), ONE)
    wanted = slow.truncated(masses, top_k, p if cut else p * ONE / sum(masses))
    found = truncate(probs, top_k, top_p)
    counted = [i for i, mass in enumerate(masses) if mass]
    assert [bool(found[i] > 0) for i in counted] == [wanted[i] > 0 for i in counted]
    np.testing.assert_allclose(found.numpy(), [float(w) for w in wanted], atol=1e-7)


@given(st.integers(1, ONE), st.integers(0, 2 * ONE - 1))
def test_a_share_of_a_mass_is_rounded_up(part, total):
    found = share(torch.tensor(part), torch.tensor(total))
    assert int(found) == -(-part * total // ONE)


@given(st.floats(0, 1, width=32))
def test_masses_are_rounded_to_the_nearest_and_exact_where_they_weigh(p):
    found = int(to_mass(torch.tensor(p)))
    assert found == round(Fraction(p) * ONE)
    assert p < 2**-17 or found == Fraction(p) * ONE


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (3000, 1.0), (3000, 0.9)])
def test_the_result_is_free_of_the_order_in_which_masses_are_added(top_k, top_p):
    random = torch.Generator().manual_seed(0)
    probs = torch.softmax(2 * torch.randn(16384, generator=random), -1)
    wanted = truncate(probs, top_k, top_p)
    for _ in range(5):
        order = torch.randperm(16384, generator=random)
        found = truncate(probs[order], top_k, top_p)
        assert torch.equal(found.sort().values, wanted.sort().values)


def test_rows_do_not_depend_on_their_neighbours():
    probs = torch.softmax(3 * torch.randn(4, 5, 300), -1)
    found = truncate(probs, 100, 0.8)
    for b in range(4):
        for p in range(5):
            assert torch.equal(found[b, p], truncate(probs[b, p], 100, 0.8))


def test_a_row_without_any_mass_stays_empty():
    probs = torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.7, 0.1]])
    found = truncate(probs, 0, 0.5)
    assert found.tolist() == [[0, 0, 0], [0, 1, 0]]


SHAPES = pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.7, 0, 1.0), (1.0, 20, 1.0), (1.3, 0, 0.6), (0.3, 20, 0.9)],
)


def on_device(temperature, top_k, top_p, device="cpu"):
    return (
        torch.tensor(temperature, device=device),
        torch.tensor(top_k, device=device) if top_k else None,
        torch.tensor(top_p, device=device) if top_p < 1 else None,
    )


@SHAPES
def test_numbers_on_the_device_shape_like_numbers_of_the_host(temperature, top_k, top_p):
    logits = 3 * torch.randn(2, 3, 200)
    wanted = model_distribution(logits, Sampling(5, temperature, top_k, top_p))
    found = shape_distribution(logits, *on_device(temperature, top_k, top_p))
    assert torch.equal(found, wanted)


@SHAPES
def test_a_recorded_pass_takes_other_numbers(temperature, top_k, top_p):
    """Recorded without values: it can neither wait for one nor have its shapes depend on one."""
    logits = 3 * torch.randn(2, 3, 200)
    first = (logits, *on_device(temperature, top_k, top_p))
    recorded = make_fx(shape_distribution, tracing_mode="fake")(*first)
    others = (0.5, 7 if top_k else 0, 0.3 if top_p < 1 else 1.0)
    second = (logits.flip(-1), *on_device(*others))
    assert torch.equal(recorded(*second), shape_distribution(*second))
    assert not torch.equal(recorded(*second), recorded(*first))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@SHAPES
def test_a_captured_graph_takes_other_numbers(temperature, top_k, top_p):
    logits = 3 * torch.randn(2, 16, 16384, device="cuda")
    numbers = on_device(temperature, top_k, top_p, "cuda")
    shape_distribution(logits, *numbers)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = shape_distribution(logits, *numbers)
    for others in ((0.5, 7, 0.3), (2.0, 900, 0.99)):
        for number, other in zip(numbers, others, strict=True):
            if number is not None:
                number.fill_(other)
        graph.replay()
        assert torch.equal(found, shape_distribution(logits, *numbers))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_keeps_what_the_host_keeps_bit_for_bit():
    probs = torch.softmax(3 * torch.randn(8, 16384), -1)
    for top_k, top_p in ((0, 0.9), (500, 1.0), (500, 0.7)):
        found = truncate(probs.cuda(), top_k, top_p).cpu()
        assert torch.equal(found, truncate(probs, top_k, top_p))


def test_without_top_k_and_top_p_nothing_is_changed():
    probs = torch.rand(3, 50).softmax(-1)
    assert keep_top(probs, None, None) is probs


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
