"""Editing an index against building another one from the pictures that are left."""

from dataclasses import replace

import numpy as np
import pytest

from arrag_engine.errors import InputError
from arrag_engine.grid import Grid
from arrag_engine.index import (
    KeySpec,
    Patches,
    SearchChoice,
    SourceTable,
    add_patches,
    create_index,
    load_index,
    merge_indexes,
    remove_pictures,
    save_index,
)
from arrag_engine.index.edit import _from_parts
from tests.tiny import tiny_index, tiny_model

SPECS = [KeySpec(), KeySpec("causal-8", "zero", "codebook"), KeySpec(position_weight=0.5)]
VARIANTS = pytest.mark.parametrize("spec", SPECS, ids=str)


def built_from(*parts, spec=None):
    """An index made at once of chosen pictures of others: (index, picture numbers)."""
    first = parts[0][0]
    return create_index(
        first.grid,
        np.concatenate([index.tokens[rows] for index, rows in parts]),
        None
        if first.vectors is None
        else np.concatenate([index.vectors[rows] for index, rows in parts]),
        first.codebook,
        [index.sources[i] for index, rows in parts for i in rows],
        spec or first.spec,
    )


def assert_same_file(one, other, folder):
    for index, name in ((one, "one"), (other, "other")):
        save_index(index, folder / name)
    assert (folder / "one").read_bytes() == (folder / "other").read_bytes()


@VARIANTS
def test_what_is_removed_was_never_there(tmp_path, model, spec):
    index = tiny_index(model, 6, spec=spec)
    left = remove_pictures(index, np.array([0, 4, 4]))
    assert_same_file(left, built_from((index, [1, 2, 3, 5])), tmp_path)


@VARIANTS
def test_what_is_added_was_always_there(tmp_path, model, spec):
    a, b = tiny_index(model, 4, 0, spec), tiny_index(model, 3, 1, spec)
    grown = add_patches(a, Patches(b.tokens, b.vectors, b.sources))
    assert_same_file(grown, built_from((a, range(4)), (b, range(3))), tmp_path)


@VARIANTS
def test_a_merged_index_finds_what_one_built_at_once_finds(tmp_path, model, spec):
    parts = [tiny_index(model, 4, seed, spec) for seed in range(3)]
    merged = merge_indexes(parts, ["a", "b", "c"])
    assert_same_file(merged, built_from(*((p, range(4)) for p in parts)), tmp_path)


def test_no_trace_of_what_was_removed_stays_in_the_file(tmp_path, model):
    index = tiny_index(model, 4)
    rows = [replace(s, licence=f"licence {i % 3}") for i, s in enumerate(index.sources)]
    index = replace(index, sources=SourceTable.from_sources(rows))
    left = remove_pictures(index, np.array([1, 3]))
    assert_same_file(left, built_from((index, [0, 2])), tmp_path)
    data = (tmp_path / "one").read_bytes()
    for trace in (b"1.png", b"picture 3", b"licence 1", b"example.org/1"):
        assert trace in b"".join(str(row).encode() for row in rows)
        assert trace not in data


def test_a_picture_that_two_indexes_hold_is_in_it_once(tmp_path, model):
    a, b = tiny_index(model, 4, 0), tiny_index(model, 3, 1)
    both = merge_indexes([a, b], ["a", "b"])
    again = merge_indexes([both, b, a], ["both", "b", "a"])
    assert_same_file(again, both, tmp_path)
    added = add_patches(a, Patches(both.tokens, both.vectors, both.sources))
    assert_same_file(added, both, tmp_path)


def test_two_crops_of_one_picture_are_two(model):
    index = tiny_index(model, 2)
    first, second = index.sources
    crops = SourceTable.from_sources([first, replace(second, sha256=first.sha256, crop=(0,) * 4)])
    merged = merge_indexes([replace(index, sources=crops)], ["a"])
    assert len(merged.tokens) == 2


def test_removing_everything_is_refused(index):
    with pytest.raises(InputError, match="remove all 5 pictures"):
        remove_pictures(index, np.arange(5))


def test_indexes_of_another_vq_or_grid_are_refused_with_both_names(model, index):
    other_vq = tiny_index(tiny_model(9))
    with pytest.raises(InputError, match=r"a and b cannot be merged: .* different VQs"):
        merge_indexes([index, other_vq], ["a", "b"])
    other_grid = tiny_index(tiny_model(config=replace(model.config, grid=Grid(5, 6))))
    with pytest.raises(InputError, match=r"a and b cannot be merged: one has a 6x6 grid, .* 5x6"):
        merge_indexes([index, other_grid], ["a", "b"])


def test_the_first_index_says_how_keys_are_made(tmp_path, model):
    vectors, codes = tiny_index(model, 3, 0), tiny_index(model, 3, 1, KeySpec(space="codebook"))
    merged = merge_indexes([codes, vectors], ["codes", "vectors"])
    assert (merged.spec, merged.vectors) == (codes.spec, None)
    with pytest.raises(InputError, match=r"vectors and codes cannot be merged: .*name it first"):
        merge_indexes([vectors, codes], ["vectors", "codes"])


def test_another_structure_can_be_asked_for(model):
    index = tiny_index(model, 30)
    choice = SearchChoice("ivf", 0.8)
    kept = remove_pictures(index, np.array([1]), choice)
    assert kept.searcher.kind == "ivf"
    assert kept.recall >= 0.8


@pytest.mark.parametrize(
    "spec", [KeySpec(), KeySpec("causal-8", "zero", position_weight=0.5)], ids=str
)
def test_an_index_that_keeps_rounded_keys_is_edited_from_these(model, spec):
    exact = tiny_index(model, 30, 0, spec, "flat")
    index = tiny_index(model, 30, 0, spec, "ivf")
    assert index.vectors is None
    for _ in range(3):
        index = remove_pictures(index, np.array([0]), SearchChoice("ivf"))
    kept = index.searcher.reconstruct(np.arange(index.size))
    truth = exact.searcher.reconstruct(np.arange(3 * len(index.active), exact.size))
    assert np.abs(kept - truth).mean() < 0.02


def test_an_index_that_becomes_small_enough_is_searched_exactly(tmp_path, model):
    exact, rounded = tiny_index(model, 30), tiny_index(model, 30, structure="ivf")
    left = remove_pictures(rounded, np.array([0]), SearchChoice("flat"))
    save_index(left, tmp_path / "a.safetensors")
    read = load_index(tmp_path / "a.safetensors")
    wanted = built_from((exact, range(1, 30)))
    queries = exact.codebook[np.random.default_rng(0).integers(0, 64, (9, 4))].reshape(9, -1)
    found, truth = read.lookup(queries, 20), wanted.lookup(queries, 20)
    np.testing.assert_allclose(found.distances, truth.distances, atol=0.1)


def test_vectors_are_the_mean_of_their_parts():
    """Two positions; the second stands in both keys, the first in none."""
    neighbors = np.array([[1, -1], [-1, 1]])
    parts = np.array([[[[1.0, 0], [9, 9]], [[9, 9], [0, 1]]]])
    rows = np.array([[[0.6, 0.8], [1, 0]]])
    found = _from_parts(parts, neighbors, rows)
    np.testing.assert_allclose(found, [[[0.6, 0.8], [0.5**0.5, 0.5**0.5]]])


def test_progress_reaches_the_end(model, index):
    seen = []
    more = tiny_index(model, 2, 7)
    add_patches(
        index,
        Patches(more.tokens, more.vectors, more.sources),
        SearchChoice("ivf"),
        lambda done, total: seen.append((done, total)),
    )
    assert seen[-1][0] == seen[-1][1] > 0
