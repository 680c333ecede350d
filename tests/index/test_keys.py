"""Keys, all at once or one by one, against a plain walk."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from arrag_engine.errors import InputError
from arrag_engine.grid import BORDERS, NEIGHBORHOODS, Grid, active_positions
from arrag_engine.index import KEY_SPACES, KeySpec
from arrag_engine.index.keys import Keys
from tests import slow
from tests.index.search.cases import all_keys, make_keys

DATABASE = Path(__file__).parents[3] / "shared" / "oracle" / "db.safetensors"


def plain_keys(keys):
    """Every key by a walk over pictures and positions."""
    spec, grid = keys.spec, keys.grid
    vectors = keys.codebook[keys.tokens] if spec.space == "codebook" else keys.vectors
    offsets = NEIGHBORHOODS[spec.neighborhood]
    rows = []
    for picture in vectors:
        for position in range(grid.size):
            if slow.is_active(grid, offsets, spec.borders, position):
                row, column = position // grid.width, position % grid.width
                place = [row / grid.height, column / grid.width] if spec.position_weight else []
                place = np.array(place) * spec.position_weight
                rows.append(np.concatenate((slow.key(picture, grid, offsets, position), place)))
    return np.array(rows, dtype=np.float32)


specs = st.builds(
    KeySpec,
    st.sampled_from(sorted(NEIGHBORHOODS)),
    st.sampled_from(BORDERS),
    st.sampled_from(KEY_SPACES),
    st.sampled_from([0.0, 0.25, 3.0]),
)


@settings(deadline=None, max_examples=60)
@given(specs, st.integers(4, 7), st.integers(7, 9), st.integers(1, 4), st.integers(1, 200))
def test_keys_equal_a_plain_walk(spec, height, width, images, chunk):
    keys = make_keys(spec, images, Grid(height, width))
    wanted = plain_keys(keys)
    assert (keys.size, keys.dim) == wanted.shape
    parts = list(keys.chunks(chunk))
    found = np.concatenate([part for _, part in parts])
    assert np.array_equal(found, wanted)
    assert found.dtype == np.float32
    assert [first for first, _ in parts] == [
        sum(len(part) for _, part in parts[:i]) for i in range(len(parts))
    ]
    ids = np.random.default_rng(0).integers(0, keys.size, (3, 5))
    assert np.array_equal(keys.rows(ids), wanted[ids])


def test_keys_equal_the_golden_database():
    if not DATABASE.exists():
        pytest.skip("the golden numbers are not here")
    golden = load_file(DATABASE)
    for name in ("grid", "grid24"):
        vectors = golden[f"{name}.vectors"]
        side = round(vectors.shape[1] ** 0.5)
        tokens, grid = golden[f"{name}.indices"].astype(np.uint16), Grid(side, side)
        keys = Keys(tokens, vectors, np.empty((0, 8), np.float32), grid, KeySpec())
        assert np.array_equal(all_keys(keys), golden[f"{name}.keys"])
        assert np.array_equal(keys.rows(np.arange(keys.size)), golden[f"{name}.keys"])
        assert np.array_equal(tokens[:, keys.active].ravel(), golden[f"{name}.values"])


def test_chunks_hold_whole_pictures_and_about_as_many_keys_as_asked():
    keys = make_keys(KeySpec(), images=7)  # 16 keys a picture
    assert [len(part) for _, part in keys.chunks(40)] == [32, 32, 32, 16]
    assert [len(part) for _, part in keys.chunks(1)] == [16] * 7


def test_a_mapped_file_serves_as_tokens(tmp_path):
    keys = make_keys()
    np.save(tmp_path / "tokens.npy", keys.tokens)
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    other = Keys(mapped, None, keys.codebook, keys.grid, keys.spec)
    assert np.array_equal(all_keys(other), all_keys(keys))


def test_without_vectors_there_are_no_encoder_keys():
    keys = make_keys(KeySpec())
    bare = Keys(keys.tokens, None, keys.codebook, keys.grid, keys.spec)
    for ask in (lambda: bare.rows(np.array([0])), lambda: bare.of_images(0, 1)):
        with pytest.raises(ValueError, match="need the encoder's vectors"):
            ask()


def test_a_grid_without_active_positions_has_no_keys():
    keys = make_keys(KeySpec(), grid=Grid(1, 4))
    assert keys.size == 0
    assert all_keys(keys).shape == (0, 32)


def test_the_position_term_tells_equal_surroundings_apart():
    plain, placed = (make_keys(KeySpec(position_weight=w), images=1) for w in (0.0, 2.0))
    vectors = np.ones_like(plain.vectors)
    for keys, distinct in ((plain, 1), (placed, plain.size)):
        same = Keys(keys.tokens, vectors, keys.codebook, keys.grid, keys.spec)
        assert len(np.unique(all_keys(same), axis=0)) == distinct
    assert placed.dim == plain.dim + 2


def test_what_stands_around_is_known_on_all_sides():
    grid = Grid(5, 6)
    active = active_positions(grid, "ring-8", "skip").reshape(5, 6)
    assert active[1:-1, 1:-1].all()
    assert active.sum() == 3 * 4


@pytest.mark.parametrize("weight", [-0.1, 101.0, float("nan"), float("inf")])
def test_a_position_weight_out_of_range_is_refused(weight):
    with pytest.raises(InputError, match=r"position weight is .*; choose 0 to 100"):
        KeySpec(position_weight=weight)


@pytest.mark.parametrize(
    ("field", "value"), [("neighborhood", "ring"), ("borders", "wrap"), ("space", "pixels")]
)
def test_an_unknown_way_to_make_keys_is_refused(field, value):
    with pytest.raises(InputError, match=f"{value!r}; choose one of"):
        KeySpec(**{field: value})
