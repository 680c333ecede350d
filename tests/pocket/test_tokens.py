"""Codes for patches: the commonest one stands for what a patch shows."""

from collections import Counter, defaultdict

import numpy as np
from backgrounds import STEP
from hypothesis import given
from hypothesis import strategies as st
from patches import patch_contents
from tokens import TokenCache, Usage

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=60)


@given(pairs)
def test_usage_is_the_commonest_code(entries):
    contents = np.array([c for c, _ in entries], dtype=np.uint64)
    codes = np.array([code for _, code in entries], dtype=np.uint16)
    seen = defaultdict(Counter)
    for content, code in entries:
        seen[content][code] += 1
    expected = {c: min(n, key=lambda code: (-n[code], code)) for c, n in seen.items()}
    usage = Usage.of(contents, codes)
    assert dict(zip(usage.contents.tolist(), usage.codes.tolist(), strict=True)) == expected
    assert usage.settle(contents, codes).tolist() == [expected[c] for c, _ in entries]


def test_unknown_contents_keep_their_codes():
    usage = Usage(np.array([3, 5], dtype=np.uint64), np.array([30, 50], dtype=np.uint16))
    contents = np.array([[1, 3], [4, 5], [9, 3]], dtype=np.uint64)
    codes = np.array([[7, 7], [8, 8], [9, 9]], dtype=np.uint16)
    assert usage.settle(contents, codes).tolist() == [[7, 30], [8, 50], [9, 30]]


def test_patches_have_the_same_number_exactly_when_their_pixels_are_the_same():
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (5, STEP, STEP, 3), dtype=np.uint8)
    tiles[1] = tiles[0]
    tiles[1, 3, 3, 1] ^= 1  # alike but for one bit
    choice = rng.integers(0, 5, (2, 4, 6))
    pixels = tiles[choice].transpose(0, 1, 3, 2, 4, 5).reshape(2, 4 * STEP, 6 * STEP, 3)
    numbers = patch_contents(pixels)
    assert numbers.shape == (2, 24)
    same = numbers.ravel()[:, None] == numbers.ravel()
    assert np.array_equal(same, choice.ravel()[:, None] == choice.ravel())


def test_caches_keep_what_was_saved(tmp_path):
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 9, (2, 4), dtype=np.uint16)
    contents = rng.integers(0, 3, (2, 4), dtype=np.uint64)
    cache = TokenCache(["a cat", "two cars"], codes, contents)
    cache.save(tmp_path / "tokens.npz")
    twice = TokenCache.join([TokenCache.load(tmp_path / "tokens.npz"), cache])
    assert twice.captions == cache.captions * 2
    assert np.array_equal(twice.codes, np.tile(codes, (2, 1)))
    settled = twice.settled(twice.usage())
    assert all(len(np.unique(settled.codes[settled.contents == c])) == 1 for c in range(3))
