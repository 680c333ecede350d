"""The layers: the same rows whatever stands beside them, packed or not."""

from importlib.metadata import version
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import run
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.models import ops
from arrag_engine.models.ops import Linear, onednn_takes, pack_linears, rowwise
from arrag_engine.settings import Sampling
from tests.tiny import BLANK, PROMPT, tiny_model

needs_onednn = pytest.mark.skipif(
    not onednn_takes(torch.float32), reason="PyTorch was built without oneDNN"
)


@pytest.fixture(params=[True, False], ids=["onednn", "without onednn"])
def with_onednn(request, monkeypatch):
    """With PyTorch's private calls, and as if this PyTorch lacked them."""
    if request.param and not onednn_takes(torch.float32):
        pytest.skip("PyTorch was built without oneDNN")
    if not request.param:
        monkeypatch.setattr(ops, "has_onednn_calls", lambda: False)
    return request.param


def layer(ins=16, outs=24, bias=True, packed=False):
    torch.manual_seed(0)
    made = Linear(ins, outs, bias=bias).requires_grad_(False)
    if packed:
        pack_linears(made)
    return made


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (2, 4), (40, 1), (0,), (2, 0)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_the_product_is_the_plain_one(with_onednn, shape, bias, packed):
    x = torch.randn(*shape, 16)
    plain = layer(bias=bias)
    found = layer(bias=bias, packed=packed)(x)
    torch.testing.assert_close(found, F.linear(x, plain.weight, plain.bias))


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # stays as it is for all examples
)
@given(
    sizes=st.tuples(st.sampled_from([8, 24, 256]), st.sampled_from([16, 200, 688])),
    rows=st.integers(2, 300),
    packed=st.booleans(),
    data=st.data(),
)
def test_a_row_alone_equals_the_row_in_company_bit_for_bit(with_onednn, sizes, rows, packed, data):
    made = layer(*sizes, packed=packed)
    assert made.weight.is_mkldnn == (packed and with_onednn)
    x = torch.randn(rows, sizes[0])
    row = data.draw(st.integers(0, rows - 1))
    with torch.inference_mode():
        assert torch.equal(made(x)[row], made(x[row]))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 300), rows=st.integers(1, 200), data=st.data())
@pytest.mark.parametrize("function", [F.silu, F.gelu, torch.sigmoid])
def test_an_activation_of_a_row_is_the_same_bits_in_company(function, n, rows, data):
    x = torch.randn(rows, n)
    row = data.draw(st.integers(0, rows - 1))
    with torch.inference_mode():
        found = rowwise(function, x)
        torch.testing.assert_close(found, function(x))
        assert torch.equal(found[row], rowwise(function, x[row]))


def test_pictures_are_the_same_in_windows_and_batches(with_onednn):
    model = tiny_model()
    pack_linears(model)

    def drawn(seeds, window):
        return draw_pictures(model, Recipe(PROMPT, BLANK, Sampling(cfg=2)), seeds, window).tokens

    alone = drawn([4], 1)
    assert len(alone.unique()) > 3
    assert torch.equal(drawn([4], 5), alone)
    assert torch.equal(drawn([3, 4, 5], 3)[1:2], alone)


@pytest.mark.parametrize(
    "changed",
    [
        ("_linear_pointwise", Mock(side_effect=RuntimeError("changed"))),
        ("_linear_pointwise", lambda rows, *_: torch.zeros(len(rows), 4)),
        ("_reorder_linear_weight", lambda: None),
        ("_is_mkldnn_bf16_supported", Mock(side_effect=AttributeError("dropped"))),
    ],
    ids=["an error", "another result", "other arguments", "dropped"],
)
def test_private_calls_that_changed_are_found_out(monkeypatch, changed):
    monkeypatch.setattr(torch.ops.mkldnn, *changed)
    assert not ops.has_onednn_calls.__wrapped__()


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or version("torch").split("+")[0] not in run.TORCH,
    reason="not the locked PyTorch, or one without oneDNN",
)
def test_the_locked_pytorch_has_the_private_calls():
    """Where the probe fails, tests of the fast way are skipped: it must not fail unnoticed."""
    assert ops.has_onednn_calls()


@needs_onednn
def test_packed_weights_have_the_plain_ones_size_and_values():
    plain, packed = layer(), layer(packed=True)
    assert packed.weight.is_mkldnn
    assert packed.weight.shape == plain.weight.shape
    assert torch.equal(packed.weight.to_dense(), plain.weight)


def test_a_gradient_flows_where_one_is_asked_for():
    with torch.inference_mode(False), torch.enable_grad():
        made = Linear(16, 24)
        made(torch.randn(3, 16)).sum().backward()
        assert made.weight.grad.abs().sum() > 0


def test_half_precision_stays_with_pytorch_where_onednn_does_not_compute_it():
    made = layer().half()
    pack_linears(made)
    assert not made.weight.is_mkldnn
