"""Search by bits on a device against the index's own search."""

import numpy as np
import pytest
import torch

from arrag_engine.index import KeySpec
from arrag_engine.index.keys import Keys
from arrag_engine.retrieval import device_bits, device_bytes, device_index, where_faster
from tests.retrieval.test_device_source import DEVICES, PLENTY, assert_same
from tests.tiny_showo import AROUND, sign_index

SPECS = [
    AROUND,
    KeySpec("ring-8", "zero", "codebook", 8.0),
    KeySpec("causal-4", "skip", "codebook"),
    KeySpec("causal-24", "zero", "codebook"),
]


def queries_of(index, count, absent, seed=1):
    """Keys of the index with some signs turned; of some neighbours nothing is known."""
    rng = np.random.default_rng(seed)
    keys = Keys(index.tokens, None, index.codebook, index.grid, index.spec)
    rows = keys.rows(rng.integers(0, keys.size, count))
    rows[rng.random(rows.shape) < 0.1] *= -1
    signs = index.spec.offsets * keys.codebook.shape[1]
    blocks = rows[:, :signs].reshape(count, index.spec.offsets, -1)
    blocks[rng.random(blocks.shape[:2]) < 0.4] = absent
    rows[:, :signs] = blocks.reshape(count, signs)
    return rows


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("absent", [0.0, np.nan], ids=["zero", "ignored"])
def test_hits_are_those_of_the_index(device, spec, absent, monkeypatch):
    """Many at equal distances; several blocks of queries and of pictures."""
    monkeypatch.setattr(device_bits, "QUERIES", 4)
    monkeypatch.setattr(device_bits, "PATCHES", 80)
    index = sign_index(8, spec=spec)
    there, queries = device_index(index, device), queries_of(index, 10, absent)
    assert there.partial
    for k in (1, 7, 100, 10_000):
        assert_same(there.lookup(queries, k), index.lookup(queries, k))
    some = np.array([1, 2, 6])
    assert_same(there.lookup(queries, 9, some), index.lookup(queries, 9, some))
    view, of_index = there.restricted(some), index.restricted(some)
    assert_same(view.lookup(queries, 200), of_index.lookup(queries, 200))
    without = [[2], [], *[[0, 6]] * 8]
    assert_same(
        there.lookup(queries, 9, without=without), index.lookup(queries, 9, without=without)
    )
    assert there.lookup(queries[:0], 3).codes.shape == (0, 3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("k", [5, 10_000])
@pytest.mark.parametrize("spec", SPECS[:2], ids=str)
def test_patches_that_lack_a_known_neighbour_are_left_out(device, spec, k, monkeypatch):
    monkeypatch.setattr(device_bits, "QUERIES", 4)
    monkeypatch.setattr(device_bits, "PATCHES", 80)
    index = sign_index(8, spec=spec)
    queries = queries_of(index, 10, np.nan)
    found = device_index(index, device).lookup(queries, k, complete=True)
    assert_same(found, index.lookup(queries, k, complete=True))
    assert (found.codes < 0).any() == (k > 5)


def test_distances_of_the_longest_keys_are_whole_in_half_precision():
    """24 neighbours of 16 bits, all of which differ."""
    ones = torch.ones(3, 2 * 24 * 16).half()
    for asked, distance in ((-1, 4 * 24 * 16), (1, 0), (0, 24 * 16)):
        factors = torch.cat((ones[:, :384], -2 * asked * ones[:, :384]), dim=1)
        lengths = (asked**2 * ones[:, :384]).sum(dim=1, keepdim=True)
        assert (torch.addmm(lengths, factors, ones.T) == distance).all()


def test_an_index_of_bits_moves_to_a_gpu_whatever_its_size():
    index = sign_index()
    gpu = torch.device("cuda")
    assert where_faster(index, torch.device("cpu"), PLENTY) is index
    assert where_faster(index, gpu, 0) is index
    moved = where_faster(index, gpu, PLENTY)
    assert isinstance(moved.searcher, device_bits.DeviceBits)
    assert 2 * index.tokens.size < device_bytes(index) < PLENTY
    with pytest.raises(ValueError, match="cannot be saved"):
        moved.searcher.arrays()
