"""Grids, neighbourhoods and where retrieval runs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrag_engine.grid import (
    BORDERS,
    NEIGHBORHOODS,
    Grid,
    active_positions,
    is_causal,
    neighbor_table,
)
from tests import slow

GRIDS = [Grid(6, 6), Grid(4, 7), Grid(1, 5), Grid(5, 1), Grid(1, 1)]


@given(st.integers(1, 256), st.integers(1, 256))
def test_a_grid_is_read_back_from_its_text(height, width):
    assert Grid.parse(str(Grid(height, width))) == Grid(height, width)


@pytest.mark.parametrize(
    "text",
    ["", "6", "6x", "x6", "0x6", "6x0", "257x1", "-6x6", "6x6x6", "6X6", " 6x6", "6x6\n", "６x６"],
)
def test_a_malformed_grid_is_refused(text):
    with pytest.raises(ValueError, match="grid"):
        Grid.parse(text)


@pytest.mark.parametrize("name", NEIGHBORHOODS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_neighbour_table_equals_a_plain_walk(grid, name):
    table = neighbor_table(grid, name)
    for position in range(grid.size):
        wanted = slow.neighbours(grid, NEIGHBORHOODS[name], position)
        assert table[position].tolist() == [-1 if n is None else n for n in wanted]


@pytest.mark.parametrize("name", NEIGHBORHOODS)
def test_causal_neighbours_are_those_drawn_before_their_position(name):
    table = neighbor_table(Grid(7, 9), name)
    assert is_causal(name) == (table < np.arange(63)[:, None]).all()
    assert is_causal(name) == name.startswith("causal")


@pytest.mark.parametrize(("name", "reach"), [("causal-12", 2), ("causal-24", 3)])
def test_a_wide_neighbourhood_is_all_there_is_above_and_before(name, reach):
    position = 4 * 9 + 4
    table = neighbor_table(Grid(9, 9), name)[position]
    rows, columns = np.divmod(np.arange(position), 9)
    near = (np.abs(rows - 4) <= reach) & (np.abs(columns - 4) <= reach)
    assert table.tolist() == np.flatnonzero(near).tolist()
    assert len(table) == int(name.removeprefix("causal-"))


def test_a_ring_is_all_there_is_around_a_position():
    table = neighbor_table(Grid(7, 9), "ring-8")
    assert table[30].tolist() == [20, 21, 22, 29, 31, 38, 39, 40]


@pytest.mark.parametrize("borders", BORDERS)
@pytest.mark.parametrize("name", NEIGHBORHOODS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_active_positions_equal_a_plain_walk(grid, name, borders):
    wanted = [
        slow.is_active(grid, NEIGHBORHOODS[name], borders, position)
        for position in range(grid.size)
    ]
    assert active_positions(grid, name, borders).tolist() == wanted


def test_the_reference_leaves_out_the_first_row_and_both_border_columns():
    active = active_positions(Grid(24, 24), "causal-4", "skip").reshape(24, 24)
    assert active[1:, 1:-1].all()
    assert active.sum() == 23 * 22


def test_with_zero_borders_only_the_first_position_has_no_neighbour():
    assert active_positions(Grid(5, 5), "causal-4", "zero").tolist() == [False] + [True] * 24
