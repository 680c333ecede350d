"""Noise made by a device is the host's; a slab holds the right part of it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arrag_engine.decode import device_noise
from arrag_engine.decode.device_noise import (
    NoiseSlab,
    device_gumbel,
    host_gumbel,
    maker,
    philox,
    product,
    shift,
    signed,
    uniforms,
)
from arrag_engine.decode.noise import Noise

CPU = torch.device("cpu")
WORD = st.integers(0, 2**64 - 1)
EDGES = [0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]


def words_of(tensor):
    return tensor.contiguous().numpy().view(np.uint64).tolist()


def pairs(*given):
    seeds, positions = zip(*given, strict=True)
    return torch.tensor([signed(s) for s in seeds]), torch.tensor(positions)


@given(WORD | st.sampled_from(EDGES), WORD | st.sampled_from(EDGES))
def test_products_are_those_of_unsigned_words(a, b):
    factor = torch.tensor([signed(b)])
    halves = factor & (2**32 - 1), shift(factor, 32)
    high, low = product(torch.tensor([signed(a)]), factor, halves)
    assert words_of(high) == [a * b >> 64]
    assert words_of(low) == [a * b % 2**64]


@given(WORD, st.integers(1, 63))
def test_shifts_are_those_of_unsigned_words(word, bits):
    assert words_of(shift(torch.tensor([signed(word)]), bits)) == [word >> bits]


@given(WORD | st.sampled_from(EDGES), st.integers(0, 2**63 - 1), st.integers(1, 9))
def test_words_are_numpys_bit_for_bit(seed, position, count):
    wanted = np.random.Philox(key=seed, counter=position << 192).random_raw(count)
    assert words_of(philox(*pairs((seed, position)), count)) == [wanted.tolist()]


def test_words_of_many_seeds_and_positions_at_once():
    seeds, positions = torch.meshgrid(torch.arange(-3, 3), torch.arange(570, 576), indexing="ij")
    found = words_of(philox(seeds, positions, 4097))
    for row, seed in enumerate(range(-3, 3)):
        for column, position in enumerate(range(570, 576)):
            random = np.random.Philox(key=seed % 2**64, counter=position << 192)
            assert found[row][column] == random.random_raw(4097).tolist()


def assert_within_one_step(found, wanted):
    found, wanted = found.cpu().numpy(), wanted.numpy()
    up, down = np.nextafter(wanted, np.float32(np.inf)), np.nextafter(wanted, np.float32(-np.inf))
    assert ((down <= found) & (found <= up)).all()


def check_gumbel(device):
    chosen = [(0, 0), (12345, 575), (2**64 - 1, 3), (2**63, 100)]
    seeds, positions = (tensor.to(device) for tensor in pairs(*chosen))
    found = device_gumbel(seeds, positions, 16384)
    assert found.dtype == torch.float32
    for row, (seed, position) in zip(found, chosen, strict=True):
        assert_within_one_step(row, Noise(seed, position, 16384).gumbel)


def test_gumbel_noise_is_the_hosts_within_one_step():
    check_gumbel(CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_makes_the_hosts_noise():
    check_gumbel(torch.device("cuda"))
    seeds, positions = pairs((2**64 - 1, 3), (7, 575))
    found = philox(seeds.cuda(), positions.cuda(), 16385).cpu()
    assert torch.equal(found, philox(seeds, positions, 16385))


def test_a_device_without_float64_gets_a_copy_of_the_hosts_noise():
    assert maker(torch.device("mps")) is maker(CPU) is host_gumbel
    assert maker(torch.device("cuda")) is device_gumbel
    found = host_gumbel(*pairs((2**64 - 1, 3), (5, 9)), 50)
    assert torch.equal(found[0], Noise(2**64 - 1, 3, 50).gumbel)
    assert torch.equal(found[1], Noise(5, 9, 50).gumbel)


def test_uniforms_are_the_hosts_and_never_0_or_1():
    seeds, positions = pairs(*[(7, p) for p in range(50)])
    found = uniforms(philox(seeds, positions, 1))[:, 0].tolist()
    assert found == [Noise(7, p, 1).uniform for p in range(50)]
    extremes = uniforms(torch.tensor([0, -1]))
    assert ((extremes > 0) & (extremes < 1)).all()


MAKERS = pytest.mark.parametrize("make", [host_gumbel, device_gumbel])
SEEDS = [3, 2**64 - 1, 2**63]


def check_slab(slab, seeds, starts, width):
    """Every position of each row's window has its noise, on the device and on the host."""
    positions = torch.tensor(starts)[:, None] + torch.arange(width)
    found = slab.at(positions)
    assert found.shape == (len(seeds), width, slab.vocab)
    for row, seed in enumerate(seeds):
        for column, position in enumerate(positions[row].tolist()):
            if position < slab.size:
                noise = Noise(seed, position, slab.vocab)
                assert_within_one_step(found[row, column], noise.gumbel)


@MAKERS
def test_rows_stand_at_different_positions_and_move_by_different_steps(make):
    slab = NoiseSlab(3, 40, 9, CPU, places=8, make=make)
    slab.begin(SEEDS)
    address, starts, steps = slab.gumbel.data_ptr(), [0, 0, 0], np.random.default_rng(0)
    while min(starts) < 40:
        slab.hold(starts, 3)
        check_slab(slab, SEEDS, starts, 3)
        starts = [min(s + int(n), 40) for s, n in zip(starts, steps.integers(0, 4, 3), strict=True)]
    assert slab.gumbel.data_ptr() == address
    assert slab.gumbel.shape == (3, 8, 9)


@MAKERS
def test_a_slab_jumps_ahead_and_back(make):
    slab = NoiseSlab(1, 100, 5, CPU, places=8, make=make)
    slab.begin([11])
    for start in (50, 3, 6, 0, 97, 90):
        slab.hold([start], 8)
        check_slab(slab, [11], [start], 8)


def test_new_pictures_have_new_noise():
    slab = NoiseSlab(2, 10, 5, CPU)
    for seeds in ([1, 2], [3, 2**64 - 7], [1, 2]):
        slab.begin(seeds)
        slab.hold([0, 4], 2)
        check_slab(slab, seeds, [0, 4], 2)


def test_each_position_is_made_once_and_a_bounded_number_at_a_time(monkeypatch):
    made, parts = [], []

    def make(seeds, positions, vocab):
        parts.append(len(positions))
        made.extend(zip(seeds.tolist(), positions.tolist(), strict=True))
        return host_gumbel(seeds, positions, vocab)

    monkeypatch.setattr(device_noise, "WORDS", 50)
    slab = NoiseSlab(2, 30, 10, CPU, places=8, make=make)
    slab.begin([1, 2])
    for start in range(30):
        slab.hold([start, start // 2], 4)
    assert max(parts) == 5
    assert len(made) == len(set(made))
    assert [position for seed, position in made if seed == 1] == list(range(30))
    assert max(position for seed, position in made if seed == 2) < 14 + 8


def test_nothing_is_made_while_every_window_is_held():
    slab = NoiseSlab(1, 100, 5, CPU, places=8)
    slab.begin([11])
    slab.hold([0], 4)
    slab.fill = lambda pairs: pytest.fail(f"made {pairs}")
    for start in (1, 4, 2):
        slab.hold([start], 4)


def test_a_window_may_be_wider_than_the_picture_but_not_than_the_slab():
    small = NoiseSlab(1, 4, 5, CPU, places=8)
    small.begin([1])
    small.hold([0], 16)
    check_slab(small, [1], [0], 16)
    with pytest.raises(ValueError, match="a window of 9 positions, the slab holds 8"):
        NoiseSlab(1, 100, 5, CPU, places=8).hold([0], 9)


def test_a_slab_of_a_whole_vocabulary_stays_small():
    slab = NoiseSlab(1, 576, 16384, CPU)
    assert slab.gumbel.nbytes <= 64 * 2**20
