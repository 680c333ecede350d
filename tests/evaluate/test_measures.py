"""Distances, copies and spreads against plain definitions."""

import numpy as np
import pytest
import torch

from arrag_engine.evaluate.measures import (
    bootstrap_interval,
    copied_share,
    frechet_distance,
    mean_and_spread,
    moments,
)
from tests.tiny import tiny_index, tiny_model


def test_frechet_distance_of_a_cloud_to_itself_is_zero():
    cloud = moments(np.random.default_rng(0).normal(size=(200, 6)))
    assert frechet_distance(cloud, cloud) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_independent_normals():
    """Diagonal covariances: |m_a - m_b|^2 + sum (s_a - s_b)^2."""
    a = np.array([0.0, 1.0, 2.0]), np.diag([1.0, 4.0, 9.0])
    b = np.array([1.0, 1.0, 0.0]), np.diag([4.0, 4.0, 1.0])
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (1 - 2) ** 2 + (3 - 1) ** 2)


def test_frechet_distance_does_not_depend_on_the_axes():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4)), rng.normal(1, 2, (300, 4))
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    plain = frechet_distance(moments(x), moments(y))
    assert frechet_distance(moments(x @ turn), moments(y @ turn)) == pytest.approx(plain)
    assert frechet_distance(moments(y), moments(x)) == pytest.approx(plain)


def test_copied_share_is_that_of_the_picture_most_alike():
    index = tiny_index(tiny_model(), images=4)
    tokens = index.tokens[2].astype(np.int64)
    assert copied_share(tokens, index) == 1
    changed = tokens.copy()
    changed[:9] = (changed[:9] + 1) % 64
    expected = max((index.tokens[i] == changed).mean() for i in range(4))
    assert copied_share(changed, index) == pytest.approx(expected)
    others = index.restricted(np.array([0, 1, 3]))
    assert copied_share(tokens, others) == max(
        (index.tokens[i] == tokens).mean() for i in (0, 1, 3)
    )


def test_spread():
    assert mean_and_spread([2.0]) == (2.0, 0.0)
    mean, spread = mean_and_spread([1.0, 2.0, 3.0])
    assert (mean, spread) == (2.0, float(torch.tensor([1.0, 2.0, 3.0]).std()))


def test_an_interval_draws_prompts_and_seeds_anew():
    """Against the slow loop over resamples, and against its limits."""
    values = np.random.default_rng(3).random((7, 4))
    low, high = bootstrap_interval(values)
    rng = np.random.default_rng(8)
    means = [values[rng.integers(0, 7, 7)][:, rng.integers(0, 4, 4)].mean() for _ in range(20_000)]
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.02)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(np.ones((5, 2))) == (1, 1)


def test_equal_seeds_leave_the_spread_of_the_prompts():
    """16 prompts of which 10 are right, whatever the seed: ± over seeds would be 0."""
    values = np.repeat([[1.0]] * 10 + [[0.0]] * 6, 4, axis=1)
    low, high = bootstrap_interval(values)
    normal = 1.96 * np.sqrt(10 / 16 * 6 / 16 / 16)
    assert low == pytest.approx(10 / 16 - normal, abs=0.07)
    assert high == pytest.approx(10 / 16 + normal, abs=0.07)
