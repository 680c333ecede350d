"""Where a layer works: region, span and curve as factors of its weight."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrag_engine.errors import InputError
from arrag_engine.grid import Grid
from arrag_engine.retrieval import Steering, row_weights, shares_of_cells

GRID = Grid(4, 6)


def test_untouched_steering_changes_nothing():
    assert Steering().factors(GRID) is None
    assert Steering(np.ones((7, 5), np.float32)).factors(GRID) is None
    assert Steering(start=1.0, end=0.0).factors(GRID) is None


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_a_cell_has_the_mean_of_the_mask_over_its_area(height, width, seed):
    mask = np.random.default_rng(seed).random((height, width)) > 0.5
    found = shares_of_cells(mask, GRID)
    # Every pixel as GRID-many equal parts: each cell then consists of whole parts.
    parts = np.kron(mask, np.ones((GRID.height, GRID.width)))
    cells = parts.reshape(GRID.height, height, GRID.width, width).mean(axis=(1, 3))
    np.testing.assert_allclose(found, cells, atol=1e-6)


def test_a_region_is_the_part_of_the_picture_that_is_painted():
    region = np.zeros((8, 12), np.float32)
    region[:4, 6:] = 1
    factors = Steering(region).factors(GRID).reshape(4, 6)
    assert (factors[:2, 3:] == 1).all()
    assert factors.sum() == 6
    region[...] = 0.25
    assert np.array_equal(Steering(region).factors(GRID), np.full(24, 0.25))


@pytest.mark.parametrize(("start", "end"), [(0, 0.5), (0.25, 0.75), (0.5, 1), (0.75, 0.25)])
def test_outside_start_and_end_the_weight_is_zero(start, end):
    factors = Steering(start=start, end=end).factors(GRID)
    low, high = sorted((start, end))
    assert np.array_equal(np.flatnonzero(factors), np.arange(int(24 * low), int(24 * high)))
    assert set(factors) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("curve", "wanted"), [("linear", 0.5), ("ease in", 0.25), ("ease out", 0.75)]
)
def test_curves_rise_from_start_to_end(curve, wanted):
    factors = Steering(curve=curve).factors(Grid(1, 101))
    assert (np.diff(factors) > 0).all()
    assert factors[50] == pytest.approx(wanted)
    assert factors[0] < 0.02
    assert factors[-1] > 0.98
    np.testing.assert_allclose(
        Steering(curve=curve, start=1.0, end=0.0).factors(Grid(1, 101)), factors[::-1], atol=1e-12
    )


def test_rows_are_interpolated_from_top_to_bottom():
    rows = Steering(curve="rows", rows=[1, 0]).factors(GRID).reshape(4, 6)
    np.testing.assert_allclose(rows[:, 0], [1, 2 / 3, 1 / 3, 0], atol=1e-12)
    assert (rows == rows[:, :1]).all()
    same = Steering(curve="rows", rows=[0.1, 0.2, 0.3, 0.4]).factors(GRID).reshape(4, 6)
    np.testing.assert_allclose(same[:, 2], [0.1, 0.2, 0.3, 0.4])
    assert (Steering(curve="rows", rows=[0.5]).factors(GRID) == 0.5).all()


def test_region_span_and_curve_are_multiplied():
    region = np.zeros((4, 6), np.float32)
    region[:, :3] = 0.5
    together = Steering(region, start=0.5, end=0, curve="linear").factors(GRID)
    apart = [Steering(region), Steering(start=0.5, end=0, curve="linear")]
    assert np.array_equal(together, np.prod([one.factors(GRID) for one in apart], axis=0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": 1.5}, "start is 1.5; choose a? ?n?u?m?b?e?r?,? ?0 to 1"),
        ({"end": float("nan")}, "end is nan"),
        ({"curve": "steep"}, "curve is 'steep'; choose one of constant, linear"),
        ({"curve": "rows"}, "the curve is rows and 0 row weights are given"),
        ({"rows": [1.0]}, "the curve is constant and 1 row weights are given"),
        ({"curve": "rows", "rows": [2.0]}, "row weight is 2.0; choose 0 to 1"),
        ({"max_distance": -1}, "max distance is -1"),
        ({"copy_limit": 1.5}, "copy limit is 1.5; choose a whole number"),
        ({"region": np.zeros((3, 3))}, "the region is empty"),
        ({"region": np.ones((2, 3, 3))}, r"an array of shape \[2, 3, 3\]; give one mask"),
        ({"region": np.full((3, 3), 2.0)}, "values outside 0 to 1"),
        ({"region": np.full((3, 3), np.nan)}, "values outside 0 to 1"),
    ],
)
def test_values_that_cannot_be_used_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        Steering(**values)


def test_row_weights_are_read_from_text():
    assert row_weights(" 1, .5\n0 ") == [1.0, 0.5, 0.0]
    assert row_weights("") == []
    with pytest.raises(InputError, match="rows holds 'half'; write numbers from 0 to 1"):
        row_weights("1 half")


@pytest.mark.parametrize("region", [[[1, 0]], np.array([["a"]]), "left.png"])
def test_a_region_is_an_array_of_numbers(region):
    with pytest.raises(InputError, match="give a numpy array of numbers"):
        Steering(region=region)


@pytest.mark.parametrize("rows", [None, 5, "1 0"])
def test_rows_are_a_list(rows):
    with pytest.raises(InputError, match="give a list of numbers"):
        Steering(curve="rows", rows=rows)
