"""Copied regions: found in finished pictures, and kept small while drawing."""

import numpy as np
import pytest

from arrag_engine.grid import Grid
from arrag_engine.index import Hits
from arrag_engine.retrieval import copied_regions, over_copying_score
from arrag_engine.retrieval.copying import CopyRule

GRID = Grid(4, 5)


def flood(equal, start):
    """The positions connected to one, as a student would find them."""
    seen, edge = set(), [start]
    while edge:
        r, c = edge.pop()
        if (r, c) in seen or (r, c) not in equal:
            continue
        seen.add((r, c))
        edge += [(r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)]
    return frozenset(seen)


def slow_regions(library, tokens, sources, larger_than, known=None):
    """{(source, down, right, positions)} of all copied regions."""
    height, width = GRID.height, GRID.width
    here, found = tokens.reshape(height, width), set()
    for source in sources:
        there = library[source].reshape(height, width)
        for down in range(-height, height + 1):
            for right in range(-width, width + 1):
                equal = {
                    (r, c)
                    for r in range(height)
                    for c in range(width)
                    if 0 <= r + down < height
                    and 0 <= c + right < width
                    and here[r, c] == there[r + down, c + right]
                    and (known is None or known[r * width + c])
                }
                for start in equal:
                    region = flood(equal, start)
                    if len(region) > larger_than:
                        found.add((source, down, right, region))
    return found


@pytest.fixture
def library():
    return np.random.default_rng(0).integers(0, 3, (4, GRID.size)).astype(np.uint16)


@pytest.mark.parametrize("larger_than", [0, 2, 5, 19])
def test_regions_are_those_of_a_flood_fill(library, larger_than):
    for seed in range(3):
        tokens = np.random.default_rng(seed).integers(0, 3, GRID.size)
        tokens[:7] = library[2][5:12]
        found = {
            (r.source, r.down, r.right, frozenset(divmod(p, GRID.width) for p in r.positions))
            for r in copied_regions(GRID, library, tokens, [0, 2, 3, 2], larger_than)
        }
        assert found == slow_regions(library, tokens, [0, 2, 3], larger_than)


def test_a_copy_of_a_source_is_one_region_of_the_whole_picture(library):
    regions = copied_regions(GRID, library, library[1].astype(np.int64), [1], GRID.size - 1)
    assert [(r.source, r.down, r.right, len(r.positions)) for r in regions] == [(1, 0, 0, 20)]
    assert over_copying_score(GRID, regions) == 1
    assert over_copying_score(GRID, []) == 0


@pytest.mark.parametrize("limit", [1, 2, 4])
@pytest.mark.parametrize("all_known", [False, True])
def test_sources_are_left_out_whose_region_would_grow_over_the_limit(library, limit, all_known):
    rng, over_limit = np.random.default_rng(1), 0
    for _ in range(40):
        tokens = rng.integers(0, 3, GRID.size)
        position = int(rng.integers(1, GRID.size))
        known = np.arange(GRID.size) < position
        if all_known:
            known = rng.random(GRID.size) < 0.7
            known[position] = False
        sources, places = rng.integers(0, 4, 6), rng.integers(0, GRID.size, 6)
        codes = library[sources, places].astype(np.int64)
        hits = Hits(np.zeros((1, 6), np.float32), codes[None], sources[None], places[None])
        found = CopyRule(GRID, library, limit).left_out(hits, tokens, known, position)
        wanted = set()
        for source, place, code in zip(sources, places, codes, strict=True):
            drawn, stands = tokens.copy(), known.copy()
            drawn[position], stands[position] = code, True
            here, there = divmod(position, GRID.width), divmod(int(place), GRID.width)
            moved = (there[0] - here[0], there[1] - here[1])
            for s, down, right, region in slow_regions(library, drawn, [source], limit, stands):
                if (down, right) == moved and here in region:
                    wanted.add(int(s))
        assert set(found) == wanted
        over_limit += bool(wanted)
    assert over_limit > 3
