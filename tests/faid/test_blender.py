"""The blender: folded, whole, window by window; one position, a window of them, a full grid."""

import pytest
import torch

from arrag_engine.errors import InputError
from arrag_engine.faid.blender import PatchBlender, causal_offsets, folded
from arrag_engine.faid.hook import BlendPass, FeatureMaps, slot_table
from arrag_engine.grid import Grid
from tests import slow
from tests.tiny import blender_tensors

CPU = torch.device("cpu")
GRID = Grid(5, 4)
HOPS = [(1,), (2,), (1, 2)]
PREFIX = "language_model.model.layers.0.blender."


def whole(tensors, hidden, hops):
    blender = PatchBlender(hidden, hops)
    own = {n.removeprefix(PREFIX): t for n, t in tensors.items() if n.startswith(PREFIX)}
    blender.load_state_dict(own)
    return blender.eval()


def work_on(positions, candidates, active, maps=None, hops=(1, 2)):
    return BlendPass(positions, candidates, active, slot_table(GRID, hops, CPU), maps)


def test_offsets_are_those_drawn_before():
    assert causal_offsets((1,)) == ((-1, -1), (-1, 0), (-1, 1), (0, -1))
    assert len(causal_offsets((2,))) == len(causal_offsets((1, 2))) == 12
    assert causal_offsets((1, 2))[-2:] == ((0, -2), (0, -1))


@pytest.mark.parametrize("hops", HOPS)
@pytest.mark.parametrize("hidden", [4, 24])
@pytest.mark.parametrize("k", [1, 3])
def test_folded_equals_whole_equals_the_convolutions_window_by_window(hops, hidden, k):
    tensors = blender_tensors(hidden, (0,), hops)
    blender = whole(tensors, hidden, hops)
    drawn, centres = torch.randn(1, GRID.size, hidden), torch.randn(1, GRID.size, k, hidden)
    inputs = torch.cat((torch.randn(1, 1, hidden), drawn[:, :-1]), dim=1)
    work = work_on(torch.arange(GRID.size)[None], centres, None, hops=hops)
    around = work.surroundings(0, inputs)
    wanted = torch.stack(
        [
            slow.blender_output(tensors, 0, hops, drawn[0], GRID, i, centres[0, i])
            for i in range(GRID.size)
        ]
    )
    torch.testing.assert_close(blender(around, centres)[0], wanted, atol=1e-5, rtol=1e-5)
    fast = folded(blender, torch.float32)
    torch.testing.assert_close(fast(around, centres)[0], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pieces", [[1] * 20, [7, 1, 12], [20]])
@pytest.mark.parametrize("hops", HOPS)
def test_pieces_of_a_picture_have_the_surroundings_of_the_whole(pieces, hops):
    inputs = torch.randn(2, GRID.size, 6)
    positions = torch.arange(GRID.size).expand(2, -1)
    wanted = work_on(positions, None, None, hops=hops).surroundings(3, inputs)
    maps, found = FeatureMaps([3], 2, GRID.size, 6, CPU, torch.float32), []
    for piece, places in zip(inputs.split(pieces, 1), positions.split(pieces, 1), strict=True):
        found.append(work_on(places, None, None, maps, hops).surroundings(3, piece))
    assert torch.equal(torch.cat(found, 1), wanted)


def test_pictures_of_a_batch_may_stand_at_different_positions_and_guesses_are_replaced():
    inputs = torch.randn(2, GRID.size, 6)
    everywhere = torch.arange(GRID.size).expand(2, -1)
    wanted = work_on(everywhere, None, None).surroundings(0, inputs)
    maps = FeatureMaps([0], 2, GRID.size, 6, CPU, torch.float32)
    work_on(everywhere, None, None, maps).surroundings(0, torch.randn(2, GRID.size, 6))
    work_on(everywhere[:, :9], None, None, maps).surroundings(0, inputs[:, :9])
    places = torch.tensor([[9, 10], [5, 6]])
    rows = torch.stack((inputs[0, 9:11], inputs[1, 5:7]))
    found = work_on(places, None, None, maps).surroundings(0, rows)
    assert torch.equal(found[0], wanted[0, 9:11])
    assert torch.equal(found[1], wanted[1, 5:7])


def test_the_first_position_sees_nothing():
    inputs = torch.randn(1, 1, 6)
    around = work_on(torch.zeros(1, 1, dtype=torch.long), None, None).surroundings(0, inputs)
    assert not around.any()


def test_features_are_added_where_positions_are_predicted_and_to_the_first_rows_only():
    x, features = torch.randn(4, 7, 6), torch.randn(2, 3, 6)
    work = BlendPass(torch.zeros(2, 3), None, None, None, first=2, rows=torch.tensor([1.0, 0.0]))
    found = work.add(x, features)
    assert torch.equal(found[0, 2:5], x[0, 2:5] + features[0])
    assert torch.equal(found[0, :2], x[0, :2])
    assert torch.equal(found[0, 5:], x[0, 5:])
    assert torch.equal(found[1:], x[1:])


def test_a_gradient_reaches_every_weight_of_both_convolutions():
    with torch.inference_mode(False), torch.enable_grad():
        blender = PatchBlender(6, (1, 2))
        blender(torch.randn(2, 12 * 6), torch.randn(2, 3, 6)).square().sum().backward()
        for name, parameter in blender.named_parameters():
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("hops", [(), (3,), (1, 3), (2, 1), (0, 1)])
def test_other_hops_are_refused(hops):
    with pytest.raises(InputError, match="a blender with hops"):
        PatchBlender(4, hops)
