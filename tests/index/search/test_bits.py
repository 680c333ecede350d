"""Search by bits against brute force, and against exact search over the same numbers."""

from dataclasses import replace

import numpy as np
import pytest

from arrag_engine.errors import InputError
from arrag_engine.grid import Grid
from arrag_engine.index import KeySpec, load_index, save_index
from arrag_engine.index.search import bits as bits_module
from arrag_engine.index.search import build_searcher
from arrag_engine.index.search.bits import popcount
from tests.index.search.cases import all_keys, make_keys
from tests.tiny_showo import AROUND, sign_index

SPECS = [
    AROUND,
    KeySpec("ring-8", "zero", "codebook", 8.0),
    KeySpec("ring-8", "skip", "codebook"),
    KeySpec("causal-4", "zero", "codebook"),
    KeySpec("causal-24", "zero", "codebook"),
]


def queries_of(keys, count=9, seed=1, absent=0.0):
    """Keys of the index with some signs turned, and of some neighbours nothing known."""
    rng = np.random.default_rng(seed)
    rows = all_keys(keys)[rng.integers(0, keys.size, count)].copy()
    rows[rng.random(rows.shape) < 0.1] *= -1
    signs = keys.spec.offsets * keys.codebook.shape[1]
    blocks = rows[:, :signs].reshape(count, -1, keys.codebook.shape[1])
    blocks[rng.random(blocks.shape[:2]) < 0.4] = absent
    return np.concatenate((blocks.reshape(count, signs), rows[:, signs:]), axis=1)


def brute_force(keys, queries, k):
    """(squared distances over the numbers that count, patches), ties by the lower number; what the
    place adds is rounded to 1/64."""
    differences = (queries[:, None].astype(np.float64) - all_keys(keys)) ** 2
    signs = keys.spec.offsets * keys.codebook.shape[1]
    place = np.rint(64 * differences[..., signs:].sum(axis=-1)) / 64
    whole = np.nansum(differences[..., :signs], axis=-1) + place
    ids = np.broadcast_to(np.arange(keys.size), whole.shape)
    order = np.lexsort((ids, whole), axis=-1)[:, :k]
    return np.take_along_axis(whole, order, 1), order


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("absent", [0.0, np.nan], ids=["zero", "ignored"])
@pytest.mark.parametrize("k", [1, 30, 10_000])
@pytest.mark.parametrize("code_dim", [3, 8, 13])
def test_it_finds_what_brute_force_finds(spec, absent, k, code_dim):
    keys = make_keys(spec, code_dim=code_dim, codes=30, signs=True)
    queries = queries_of(keys, absent=absent)
    distances, ids = build_searcher(keys, "bits").search(queries, k)
    wanted, order = brute_force(keys, queries, k)
    assert (distances.dtype, ids.dtype) == (np.float32, np.int64)
    assert np.array_equal(distances, wanted)
    assert np.array_equal(ids, order)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("k", [20, 300])
def test_it_finds_what_exact_search_over_numbers_finds(spec, k):
    keys = make_keys(spec, signs=True)
    queries = queries_of(keys)
    one, other = (build_searcher(keys, kind).search(queries, k) for kind in ("bits", "flat"))
    rounded = 2 / 64 if spec.position_weight else 0
    assert np.abs(one[0] - other[0]).max() <= rounded


def test_chunks_change_nothing(monkeypatch):
    keys = make_keys(AROUND, signs=True)
    queries = queries_of(keys)
    wanted = build_searcher(keys, "bits").search(queries, 40)
    monkeypatch.setattr(bits_module, "CHUNK", 70)
    for found, other in zip(build_searcher(keys, "bits").search(queries, 40), wanted, strict=True):
        assert np.array_equal(found, other)


def test_without_numpys_own_count_a_table_counts(monkeypatch):
    words = np.random.default_rng(0).integers(0, 2**63, (5, 3, 2), dtype=np.uint64)
    wanted = [[[int(w).bit_count() for w in row] for row in block] for block in words]
    assert popcount(words).tolist() == wanted
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert popcount(words).tolist() == wanted


@pytest.mark.parametrize("images", [[3], [7, 2], [0, 1, 2, 3, 10]], ids=str)
def test_restricted_it_finds_what_brute_force_finds_there(images):
    keys = make_keys(AROUND, signs=True)
    whole = build_searcher(keys, "bits")
    part = whole.restrict(np.array(images))
    queries, per_image = queries_of(keys), len(keys.active)
    distances, order = brute_force(keys, queries, keys.size)
    found = part.search(queries, 25)
    for row in range(len(queries)):
        inside = np.isin(order[row] // per_image, images)
        assert np.array_equal(found[1][row], order[row][inside][:25])
        assert np.array_equal(found[0][row], distances[row][inside][:25])
    assert part.size == len(images) * per_image
    assert part.restrict(np.array([3, 11])).size == per_image * (3 in images)


def test_keys_that_are_no_signs_are_refused():
    for spec, signs, message in (
        (AROUND, False, "needs codes that are signs"),
        (KeySpec("ring-8", "zero", "encoder"), True, "needs keys of the codebook key space"),
    ):
        with pytest.raises(InputError, match=f"{message}.*; choose another structure"):
            build_searcher(make_keys(spec, signs=signs), "bits")


def test_a_file_keeps_it_and_stores_nothing_of_it(tmp_path):
    index, queries = sign_index(), queries_of(make_keys(AROUND, code_dim=6, signs=True))
    save_index(index, tmp_path / "a.safetensors")
    loaded = load_index(tmp_path / "a.safetensors")
    assert (loaded.searcher.kind, loaded.partial, loaded.recall) == ("bits", True, 1.0)
    for found, wanted in zip(
        loaded.lookup(queries, 12).fields, index.lookup(queries, 12).fields, strict=True
    ):
        assert np.array_equal(found, wanted)


def test_a_file_whose_codes_are_no_signs_is_refused(tmp_path):
    index = sign_index()
    shorter = index.codebook / np.sqrt(np.float32(index.codebook.shape[1]))
    save_index(replace(index, codebook=shorter), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="codes that are signs"):
        load_index(tmp_path / "a.safetensors")


def test_one_picture_of_one_patch():
    keys = make_keys(KeySpec("ring-8", "skip", "codebook"), images=1, grid=Grid(3, 3), signs=True)
    distances, ids = build_searcher(keys, "bits").search(all_keys(keys), 5)
    assert (distances.tolist(), ids.tolist()) == ([[0.0]], [[0]])
