"""Stored structures: put back as they were, or refused with a sentence."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrag_engine.index import KeySpec
from arrag_engine.index.keys import Keys
from arrag_engine.index.search import load_searcher
from arrag_engine.index.search.inverted import Inverted
from arrag_engine.index.search.ivf import ScalarCodec, Scales
from tests.index.search.cases import BUILDS, SPECS, all_keys, make_keys, make_queries, make_searcher

every_build = pytest.mark.parametrize(("spec", "kind"), BUILDS, ids=str)


@cache
def built(spec, kind):
    keys = make_keys(spec)
    return keys, make_searcher(keys, kind, nprobe=3)


def half_precision(keys, searcher):
    """The same lists with codes of twice the size."""
    codec, lists = ScalarCodec(keys, searcher.centroids, None), searcher.lists
    codes = codec.encode(lists.ids.astype(np.int64), lists.numbers())
    return Inverted(codec, searcher.centroids, lists, codes, len(keys.active), 3, 0.9)


def without_vectors(keys):
    return Keys(keys.tokens, None, keys.codebook, keys.grid, keys.spec)


def same_answers(one, other, keys):
    queries = make_queries(keys)
    for a, b in zip(one.search(queries, 30), other.search(queries, 30), strict=True):
        assert np.array_equal(a, b)


@every_build
def test_it_comes_back_as_it_was(spec, kind):
    keys, searcher = built(spec, kind)
    bare = keys if kind == "flat" else without_vectors(keys)
    other = load_searcher(kind, bare, searcher.arrays(), searcher.settings)
    assert (other.kind, other.size, other.settings) == (kind, keys.size, searcher.settings)
    same_answers(searcher, other, keys)
    for name, array in searcher.arrays().items():
        assert np.array_equal(other.arrays()[name], array)


@every_build
def test_built_again_it_is_the_same(spec, kind):
    keys, searcher = built(spec, kind)
    again = make_searcher(keys, kind, nprobe=3)
    assert again.settings == searcher.settings
    for name, array in searcher.arrays().items():
        assert np.array_equal(again.arrays()[name], array)


def test_half_precision_comes_back_and_holds_keys_more_exactly():
    keys, searcher = built(SPECS[0], "ivf")
    half = half_precision(keys, searcher)
    other = load_searcher("ivf", without_vectors(keys), half.arrays(), half.settings)
    same_answers(half, other, keys)
    errors = [np.abs(s.reconstruct(np.arange(s.size)) - all_keys(keys)) for s in (other, searcher)]
    assert errors[0].max() < 1e-3 < errors[1].max()


def test_exact_search_of_encoder_keys_needs_the_vectors():
    keys = without_vectors(built(SPECS[0], "flat")[0])
    with pytest.raises(ValueError, match="lacks the encoder's vectors"):
        load_searcher("flat", keys, {}, {})


@pytest.mark.parametrize("kind", ["auto", "subset", "hnsw", ""])
def test_a_structure_nobody_knows_is_refused(kind):
    with pytest.raises(ValueError, match="search structure"):
        load_searcher(kind, make_keys(), {}, {})


@pytest.mark.parametrize("kind", ["ivf", "compact"])
@pytest.mark.parametrize("name", ["centroids", "lists", "codes"])
def test_a_missing_array_is_named(kind, name):
    keys, searcher = built(SPECS[1], kind)
    arrays = searcher.arrays()
    del arrays[name]
    with pytest.raises(ValueError, match=f"the {kind} structure lacks {name}"):
        load_searcher(kind, keys, arrays, searcher.settings)


def changed(array, where, value):
    array = array.copy()
    array[where] = value
    return array


DAMAGE = {
    "centroids of another type": ("centroids", lambda a: a.astype(np.float64)),
    "centroids of another width": ("centroids", lambda a: a[:, :-1]),
    "centroids in a row": ("centroids", lambda a: a.ravel()),
    "no centroid": ("centroids", lambda a: a[:0]),
    "more centroids than patches": ("centroids", lambda a: np.tile(a, (9, 1))),
    "a centroid that is no number": ("centroids", lambda a: changed(a, (1, 2), np.nan)),
    "an endless centroid": ("centroids", lambda a: changed(a, (1, 2), np.inf)),
    "a centroid far out": ("centroids", lambda a: changed(a, (1, 2), 1e30)),
    "lists of another type": ("lists", lambda a: a.astype(np.int32)),
    "too few lists": ("lists", lambda a: a[:-1]),
    "lists in a table": ("lists", lambda a: a[:, None]),
    "a list that is not there": ("lists", lambda a: changed(a, 5, 42)),
    "codes of another type": ("codes", lambda a: a.astype(np.int64)),
    "codes of the other width": ("codes", lambda a: np.tile(a, (1, 2))),
    "codes of an odd width": ("codes", lambda a: np.ascontiguousarray(a[:, :-1])),
    "too few codes": ("codes", lambda a: a[:-1]),
    "codes in a row": ("codes", lambda a: a.ravel()),
    "codes column by column": ("codes", np.asfortranarray),
}


@pytest.mark.parametrize("kind", ["ivf", "compact"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_array_is_refused(kind, damage):
    keys, searcher = built(SPECS[1], kind)
    name, spoil = DAMAGE[damage]
    arrays = searcher.arrays()
    assert len(arrays["centroids"]) == 42
    arrays[name] = spoil(arrays[name])
    with pytest.raises(ValueError, match=r"centroid|list|codes"):
        load_searcher(kind, keys, arrays, searcher.settings)


@pytest.mark.parametrize(
    ("spec", "where", "value"),
    [
        (SPECS[1], (7, 0), 40),  # 40 codes: 0 to 39
        (SPECS[2], (7, 3), 41),  # and 40 for outside
        (SPECS[2], (7, 4), 29),  # 29 active positions: 0 to 28
    ],
)
def test_a_code_beyond_the_codebook_is_refused(spec, where, value):
    keys, searcher = built(spec, "compact")
    arrays = searcher.arrays()
    arrays["codes"] = changed(arrays["codes"], where, value)
    with pytest.raises(ValueError, match=f"codes hold {value} where {value - 1} is the last"):
        load_searcher("compact", keys, arrays, searcher.settings)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: a[:1],
        lambda a: a.astype(np.float64),
        lambda a: a.ravel(),
        lambda a: changed(a, (0, 3), np.nan),
        lambda a: changed(a, (1, 3), 0),
        lambda a: changed(a, (1, 3), np.inf),
    ],
)
def test_ranges_that_are_none_are_refused(spoil):
    keys, searcher = built(SPECS[0], "ivf")
    arrays = searcher.arrays()
    arrays["scaled_ranges"] = spoil(arrays["scaled_ranges"])
    with pytest.raises(ValueError, match="range"):
        load_searcher("ivf", keys, arrays, searcher.settings)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: a[:1],
        lambda a: a.astype(np.int64),
        lambda a: a[:, None],
        lambda a: changed(a, 3, 17),
        lambda a: changed(a, 3, -(2**31)),
    ],
)
def test_scales_that_are_none_are_refused(spoil):
    keys, searcher = built(SPECS[0], "ivf")
    arrays = searcher.arrays()
    arrays["exponents"] = spoil(arrays["exponents"])
    with pytest.raises(ValueError, match="scale"):
        load_searcher("ivf", keys, arrays, searcher.settings)


@pytest.mark.parametrize("name", ["scaled_ranges", "exponents"])
def test_ranges_go_with_scales(name):
    keys, searcher = built(SPECS[0], "ivf")
    arrays = searcher.arrays()
    del arrays[name]
    with pytest.raises(ValueError, match="ranges without scales or scales without ranges"):
        load_searcher("ivf", keys, arrays, searcher.settings)


def test_ranges_of_earlier_versions_come_without_scales():
    keys, searcher = built(SPECS[0], "ivf")
    scales = Scales(searcher.codec.scales.ranges, np.zeros(len(searcher.centroids), np.int32))
    codec, lists = ScalarCodec(keys, searcher.centroids, scales), searcher.lists
    codes = codec.encode(lists.ids.astype(np.int64), lists.numbers())
    whole = Inverted(codec, searcher.centroids, lists, codes, len(keys.active), 3, 0.9)
    arrays = whole.arrays()
    assert not arrays.pop("exponents").any()
    arrays["ranges"] = arrays.pop("scaled_ranges")
    earlier = load_searcher("ivf", keys, arrays, {"nprobe": "3", "recall": "0.9000"})
    same_answers(earlier, whole, keys)
    assert earlier.choice == "8-bit keys, 3 of 42 lists"


def test_codes_in_half_precision_that_are_no_numbers_are_refused():
    keys, searcher = built(SPECS[0], "ivf")
    half = half_precision(keys, searcher)
    arrays = half.arrays()
    arrays["codes"] = changed(arrays["codes"], (3, slice(4, 6)), 255)
    with pytest.raises(ValueError, match="not a finite number"):
        load_searcher("ivf", keys, arrays, half.settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"nprobe": "0"},
        {"nprobe": "43"},
        {"nprobe": "-1"},
        {"nprobe": "1e1"},
        {"nprobe": "٣"},
        {"nprobe": None},
        {"recall": "1.5"},
        {"recall": "nan"},
        {"recall": None},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings):
    keys, searcher = built(SPECS[1], "compact")
    given = {k: v for k, v in (searcher.settings | settings).items() if v is not None}
    with pytest.raises(ValueError, match=next(iter(settings))):
        load_searcher("compact", keys, searcher.arrays(), given)


@pytest.mark.parametrize(
    "spec",
    [KeySpec(), KeySpec(borders="zero"), SPECS[2]],
    ids=["encoder", "encoder, zero", "zero, placed"],
)
def test_a_compact_structure_over_other_keys_is_refused(spec):
    _, searcher = built(SPECS[1], "compact")
    with pytest.raises(ValueError, match=r"needs keys of the codebook|for|not"):
        load_searcher("compact", make_keys(spec), searcher.arrays(), searcher.settings)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([b for b in BUILDS if b[1] != "flat"]), st.data())
def test_whatever_is_changed_it_is_refused_or_finds_patches_of_the_index(build, data):
    """Bytes, lengths and shapes at random; faiss sees nothing that it could trip over."""
    spec, kind = build
    keys, searcher = built(spec, kind)
    arrays = searcher.arrays()
    name = data.draw(st.sampled_from(sorted(arrays)))
    raw = bytearray(arrays[name].tobytes())
    changes = data.draw(st.integers(0, 3))
    for _ in range(changes):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    changed = np.frombuffer(bytes(raw), arrays[name].dtype).reshape(arrays[name].shape)
    if data.draw(st.booleans()):
        changed = changed[: data.draw(st.integers(0, len(changed)))]
    if data.draw(st.booleans()):
        changed = changed.reshape(data.draw(st.sampled_from([(-1,), (-1, 1), (1, -1)])))
    if not changes and changed.shape == arrays[name].shape:
        changed = changed.view(data.draw(st.sampled_from([np.uint8, changed.dtype])))
    arrays[name] = changed
    try:
        other = load_searcher(kind, keys, arrays, searcher.settings)
    except ValueError:
        return
    _, ids = other.search(make_queries(keys), 30)
    assert ((ids >= -1) & (ids < keys.size)).all()
    assert all(len(set(row)) == 30 for row in ids.tolist() if -1 not in row)
