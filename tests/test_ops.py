"""The layers: the same rows whatever stands beside them, packed or not."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from arrag_engine.ops import Linear, onednn_takes, pack_linears, rowwise

needs_onednn = pytest.mark.skipif(
    not onednn_takes(torch.float32), reason="PyTorch was built without oneDNN"
)


def layer(ins=16, outs=24, bias=True, packed=False):
    torch.manual_seed(0)
    made = Linear(ins, outs, bias=bias).requires_grad_(False)
    if packed:
        pack_linears(made)
    return made


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (2, 4), (40, 1), (0,), (2, 0)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_the_product_is_the_plain_one(shape, bias, packed):
    x = torch.randn(*shape, 16)
    plain = layer(bias=bias)
    found = layer(bias=bias, packed=packed)(x)
    torch.testing.assert_close(found, F.linear(x, plain.weight, plain.bias))


@needs_onednn
@settings(max_examples=30, deadline=None)
@given(
    sizes=st.tuples(st.sampled_from([8, 24, 256]), st.sampled_from([16, 200, 688])),
    rows=st.integers(2, 300),
    packed=st.booleans(),
    data=st.data(),
)
def test_a_row_alone_equals_the_row_in_company_bit_for_bit(sizes, rows, packed, data):
    made = layer(*sizes, packed=packed)
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
