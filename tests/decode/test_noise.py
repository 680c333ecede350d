"""Noise of positions, and tokens drawn with it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from arrag_engine.decode.noise import Noise, draw
from arrag_engine.sampling import truncate
from tests import slow


def noise_with(gumbel):
    return SimpleNamespace(gumbel=torch.tensor(gumbel, dtype=torch.float32))


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
        noise = Noise(seed, position, 1000)
        assert noise.uniform == pytest.approx(uniform, abs=1e-9)
        np.testing.assert_allclose(noise.gumbel[:3].numpy(), gumbel, rtol=1e-5)


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (99, 575), (2**64 - 1, 1)])
def test_noise_comes_from_the_published_philox_generator(seed, position):
    bits = slow.philox(seed, position, 9)
    uniform = [(b + 0.5) / 2**64 for b in bits]
    noise = Noise(seed, position, 8)
    assert noise.uniform == pytest.approx(uniform[0], abs=1e-12)
    np.testing.assert_allclose(noise.gumbel, -np.log(-np.log(uniform[1:])), rtol=1e-5)


def test_noise_is_that_of_integers_as_key_and_counter():
    raw = np.random.Philox(key=2**64 - 1, counter=575 << 192).random_raw(65)
    uniform = ((raw >> np.uint64(12)) + 0.5) * 2.0**-52
    noise = Noise(-1, 575, 64)
    assert noise.uniform == uniform[0]
    wanted = -np.log(-np.log(uniform[1:]))
    assert np.array_equal(noise.gumbel.numpy(), wanted.astype(np.float32))


def test_noise_does_not_depend_on_the_size_of_the_vocabulary():
    small, large = Noise(7, 5, 10), Noise(7, 5, 1000)
    assert small.uniform == large.uniform
    assert torch.equal(small.gumbel, large.gumbel[:10])


def test_seeds_wrap_at_two_to_the_64():
    assert torch.equal(Noise(2**64 + 9, 2, 50).gumbel, Noise(9, 2, 50).gumbel)
    assert torch.equal(Noise(-1, 2, 50).gumbel, Noise(2**64 - 1, 2, 50).gumbel)


def test_noise_of_positions_and_seeds_is_unrelated():
    rows = [
        Noise(seed, position, 4096).gumbel.numpy() for seed in range(4) for position in range(6)
    ]
    related = np.abs(np.corrcoef(rows) - np.eye(24))
    assert related.max() < 0.08  # 5 standard deviations of 1 / sqrt(4096)
    flat = np.concatenate(rows)
    assert len(np.unique(flat)) > 0.95 * len(flat)


def test_noise_is_gumbel_and_the_choice_of_component_uniform():
    noises = [Noise(3, position, 200) for position in range(400)]
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
    noise = Noise(0, 0, 4)
    assert 0 < noise.uniform < 1
    assert torch.isfinite(noise.gumbel).all()


def test_draws_have_the_distribution_they_are_drawn_from():
    probs = truncate(
        torch.softmax(torch.randn(24, generator=torch.Generator().manual_seed(1)), -1), 12, 1.0
    )
    drawn = [draw(probs, Noise(seed, 17, 24)) for seed in range(4000)]
    counts = np.bincount(drawn, minlength=24)
    kept = probs.numpy() > 0
    assert counts[~kept].sum() == 0
    wanted = probs.double().numpy()[kept]
    assert stats.chisquare(counts[kept], wanted / wanted.sum() * 4000).pvalue > 1e-3
