"""Weights of 8 bits: the products of slow, unpacked references, the same row in any company."""

import weakref
from dataclasses import replace
from importlib.metadata import version
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F

import run
from arrag_engine import draw, load_model
from arrag_engine.checkpoints import load_checkpoint, resolve_dtype, resolve_storage
from arrag_engine.checkpoints.adapter import load_adapter
from arrag_engine.checkpoints.loading import read_model
from arrag_engine.checkpoints.opening import open_checkpoint
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.errors import InputError
from arrag_engine.faid import Faid
from arrag_engine.grid import Grid
from arrag_engine.models import packed
from arrag_engine.models.janus.model import JanusConfig, JanusPro
from arrag_engine.models.janus.vq import VQConfig
from arrag_engine.models.llama import LlamaConfig
from arrag_engine.models.ops import pack_linears
from arrag_engine.models.packed import HostEmbedding, PackedLinear, has_int8_product, pack
from arrag_engine.settings import Sampling
from tests.tiny import BLANK, PROMPT, tiny_config, tiny_model, write_adapter, write_tiny

INT8, FP8, FP32 = torch.int8, torch.float8_e4m3fn, torch.float32
WIDE = tiny_config(hidden=64)  # wide enough for the private product in some layers, not in all
JANUS_7B = JanusConfig(LlamaConfig(102400, 4096, 11008, 30, 32, 32), VQConfig(), Grid(24, 24))
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
storages = pytest.mark.parametrize("storage", [INT8, FP8], ids=["int8", "fp8"])


@pytest.fixture(params=[True, False], ids=["private product", "copies"])
def with_product(request, monkeypatch):
    """With PyTorch's private product for int8, and as if this PyTorch lacked it."""
    if request.param and not has_int8_product():
        pytest.skip("this PyTorch has no product for int8 weights")
    if not request.param:
        monkeypatch.setattr(packed, "has_int8_product", lambda: False)
    return request.param


@pytest.fixture(scope="module")
def wide_file(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("wide") / "wide.safetensors", tiny_model(0, WIDE))


def layer(weight, storage, bias=None):
    """(the packed layer, its weight unpacked)."""
    outs, ins = weight.shape
    made = PackedLinear(ins, outs, bias is not None, storage=storage)
    made.weight.data, made.scale.data = pack(weight, storage)
    if bias is not None:
        made.bias.data = bias
    return made, made.weight.float() * made.scale[:, None]


@storages
def test_packed_weights_differ_by_half_a_step_at_most(storage):
    weight = torch.randn(40, 64) * torch.logspace(-6, 3, 40)[:, None]
    stored, scale = pack(weight, storage)
    assert stored.dtype == storage
    assert scale.dtype == FP32
    error = (stored.float() * scale[:, None] - weight).abs()
    step = 1.0 if storage == INT8 else (stored.float().abs() / 8).clamp_min(2**-9)
    assert (error <= 0.501 * step * scale[:, None]).all()
    assert torch.equal(scale, scale.bfloat16().float())
    assert stored.float().abs().max() <= packed.LARGEST[storage]


@storages
def test_a_row_of_zeros_stays_zero(storage):
    stored, scale = pack(torch.zeros(2, 8), storage)
    assert not (stored.float() * scale[:, None]).any()


def test_packing_in_slices_packs_the_same(monkeypatch):
    weight = torch.randn(10, 12)
    whole = pack(weight, INT8)
    monkeypatch.setattr(packed, "SLICE", 36)
    assert all(torch.equal(a, b) for a, b in zip(pack(weight, INT8), whole, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_numbers_of_fp8_are_converted_exactly(dtype):
    every = torch.arange(256, dtype=torch.uint8)
    every = every[(every & 127) != 127].view(FP8)  # without NaN
    assert torch.equal(packed.numbers(every, dtype), every.to(dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (0, 2)])
@storages
def test_the_product_is_that_of_the_unpacked_weight(
    with_product, storage, shape, bias, dtype, device
):
    torch.manual_seed(0)
    x = torch.randn(*shape, 64)
    b = torch.randn(32) if bias else None
    made, weight = layer(torch.randn(32, 64), storage, b)
    made.bias = None if b is None else torch.nn.Parameter(b.to(dtype))
    expected = F.linear(x, weight, b)
    with torch.inference_mode():
        found = made.to(device)(x.to(device, dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float().cpu(), expected, rtol=0.02, atol=0.15)


def test_copies_are_exact_in_float32(monkeypatch):
    monkeypatch.setattr(packed, "has_int8_product", lambda: False)
    made, weight = layer(torch.randn(32, 64), INT8)
    x = torch.randn(3, 64)
    with torch.inference_mode():
        torch.testing.assert_close(made(x), F.linear(x, weight))


@storages
def test_a_product_in_slices_is_the_product(storage, monkeypatch):
    monkeypatch.setattr(packed, "has_int8_product", lambda: False)
    made, _ = layer(torch.randn(24, 16), storage)
    x = torch.randn(3, 16)
    with torch.inference_mode():
        whole = made(x)
        monkeypatch.setattr(packed, "SLICE", 80)
        torch.testing.assert_close(made(x), whole)
    assert made.copied == 80


@storages
def test_float16_does_not_overflow(storage):
    made, weight = layer(torch.ones(16, 512), storage)
    x = torch.full((1, 512), 4.0)
    with torch.inference_mode():
        found = made(x.half())
    torch.testing.assert_close(found.float(), F.linear(x, weight), rtol=0.01, atol=0)


@pytest.mark.parametrize(("outs", "ins"), [(7, 13), (32, 48), (20, 64), (16, 64), (48, 192)])
@storages
def test_a_row_alone_equals_the_row_in_company_bit_for_bit(with_product, storage, outs, ins):
    made, weight = layer(torch.randn(outs, ins), storage)
    x = torch.randn(40, ins)
    with torch.inference_mode():
        together = made(x)
        torch.testing.assert_close(together, F.linear(x, weight), rtol=0.02, atol=0.2)
        for row in (0, 17, 39):
            assert torch.equal(made(x[row]), together[row])


def load(file, name):
    cpu = torch.device("cpu")
    return load_checkpoint(file, resolve_dtype(name, cpu), storage=resolve_storage(name))


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_the_decoder_and_head_are_stored_so_and_nothing_else(wide_file, name):
    model, storage = load(wide_file, name).model, resolve_storage(name)
    stored = {n for n, tensor in model.state_dict().items() if tensor.dtype == storage}
    expected = {n for n, _ in model.named_parameters() if n.endswith("proj.weight")}
    heads = {"gen_head.output_mlp_projector.weight", "gen_head.vision_head.weight"}
    assert stored == {n for n in expected if n.startswith("llama.layers.")} | heads
    assert model.dtype == resolve_dtype("auto", torch.device("cpu"))
    plain = tiny_model(0, WIDE)
    for layer_name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            weight = plain.get_submodule(layer_name).weight
            assert torch.equal(module.weight.float(), pack(weight, storage)[0].float())
    assert torch.equal(model.llama.embed_tokens.weight, plain.llama.embed_tokens.weight)


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_pictures_are_those_of_the_unpacked_weights(wide_file, name, monkeypatch):
    monkeypatch.setattr(packed, "has_int8_product", lambda: False)  # it rounds inputs to bfloat16
    model = read_model(open_checkpoint(wide_file), FP32, storage=resolve_storage(name))
    plain = tiny_model(0, WIDE)
    for layer_name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            unpacked = module.weight.float() * module.scale[:, None]
            plain.get_submodule(layer_name).weight.copy_(unpacked)
    recipe = Recipe(PROMPT, BLANK, Sampling(cfg=2))
    found, expected = (draw_pictures(m, recipe, [1, 2]).tokens for m in (model, plain))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_pictures_are_the_same_in_windows_and_batches(wide_file, name, with_product):
    model = read_model(open_checkpoint(wide_file), FP32, storage=resolve_storage(name))
    pack_linears(model)
    assert any(isinstance(m, PackedLinear) for m in model.modules())

    def drawn(seeds, window):
        return draw_pictures(model, Recipe(PROMPT, BLANK, Sampling(cfg=2)), seeds, window).tokens

    alone = drawn([4], 1)
    assert len(alone.unique()) > 3
    assert torch.equal(drawn([4], 5), alone)
    assert torch.equal(drawn([3, 4, 5], 3)[1:2], alone)


def test_the_fingerprint_is_that_of_the_file(wide_file):
    assert load(wide_file, "int8").fingerprint == load(wide_file, "fp32").fingerprint


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_an_adapter_works_on_top_in_the_compute_dtype(tmp_path, wide_file, name):
    """Its low-rank changes and head are not packed, and act as on the unpacked weights."""
    file = write_adapter(tmp_path / "a.safetensors", wide_file, scale=0.1)
    base = load(wide_file, name)
    adapter = load_adapter(file, base, base.model.dtype)
    assert {p.dtype for p in adapter.parameters()} == {base.model.dtype}
    recipe = Recipe(PROMPT, BLANK, Sampling(cfg=2))
    plain = draw_pictures(base.model, recipe, [1]).tokens
    changed = draw_pictures(base.model, replace(recipe, faid=Faid(adapter)), [1]).tokens
    assert not torch.equal(changed, plain)


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_the_choice_reaches_the_public_api(wide_file, name):
    model = load_model(str(wide_file), name, "cpu")
    assert model.model.llama.layers[0].mlp.up_proj.weight.dtype == resolve_storage(name)
    assert model.model.dtype == resolve_dtype("auto", torch.device("cpu"))
    assert draw(model, "a red car").tokens.shape == (1, 6, 6)


def test_auto_never_packs(wide_file):
    assert resolve_storage("auto") is None
    modules = load_model(str(wide_file), device="cpu").model.modules()
    assert not any(isinstance(module, PackedLinear) for module in modules)


def test_loading_holds_one_unpacked_weight_at_a_time(wide_file, monkeypatch):
    opened = open_checkpoint(wide_file)
    read, alive, most = opened.weights.read, weakref.WeakSet(), 0

    def watched(name, *args, **kwargs):
        nonlocal most
        most = max(most, len(alive))
        tensor = read(name, *args, **kwargs)
        if "layers" in name and "proj" in name:
            alive.add(tensor)
        return tensor

    monkeypatch.setattr(type(opened.weights), "read", lambda _, *a, **k: watched(*a, **k))
    read_model(opened, FP32, storage=INT8)
    assert most == 0


def test_the_text_embedding_stays_on_the_cpu_and_is_no_parameter():
    made = HostEmbedding(5, 3)
    made.load_state_dict({"weight": torch.arange(15.0).view(5, 3)})
    assert not list(made.parameters())
    assert not made.state_dict()
    made.to("meta")
    assert made.weight.device.type == "cpu"
    assert torch.equal(made(torch.tensor([[4, 0]])), made.weight[[4, 0]][None])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_rows_of_the_embedding_go_to_where_the_ids_are():
    made = HostEmbedding(5, 3)
    made.load_state_dict({"weight": torch.arange(15.0).view(5, 3)})
    assert made.to("cuda")(torch.tensor([1], device="cuda")).device.type == "cuda"


@pytest.mark.parametrize("storage", [INT8, FP8, None], ids=["int8", "fp8", "bf16"])
def test_memory_of_janus_pro_7b(storage):
    """Each phase of a drawing in 7.0 GB: tokens in passes of 16, with the cache of a prompt of 64
    tokens and a picture; pixels, once the passes are freed, with the VQ on the device (ComfyUI) or
    on the CPU (the command)."""
    with torch.device("meta"):
        model = JanusPro(JANUS_7B, storage=storage)
    for name, parameter in model.named_parameters():
        if not name.startswith("vq.") and parameter.dtype == FP32 and "scale" not in name:
            parameter.data = parameter.data.bfloat16()
    assert model.dtype == torch.bfloat16
    decoder = sum(p.nbytes for part in model.drawing_parts for p in part.parameters())
    tokens = decoder + model.drawing_bytes(2, 64 + 576, 16)
    pixels = decoder + sum(p.nbytes for p in model.vq.parameters()) + model.picture_bytes()
    assert tokens - decoder >= model.new_cache(2, 640, torch.device("meta")).keys.nbytes * 2
    assert (max(tokens, pixels) <= 7.0e9) == (storage is not None), (tokens, pixels)


@pytest.mark.parametrize("device", DEVICES)
def test_the_vq_stays_on_the_cpu_beside_packed_weights(wide_file, device):
    plain, packed_model = load(wide_file, "fp32"), load(wide_file, "int8")
    weights = list(packed_model.model.vq.parameters())
    for move in (torch.nn.Module.half, lambda m: m.to(device)):
        move(packed_model.model)
        assert all(w.dtype == FP32 and w.device.type == "cpu" for w in weights)
        assert all(a is b for a, b in zip(packed_model.model.vq.parameters(), weights, strict=True))
    images = torch.rand(2, 3, 24, 24, device=device) * 2 - 1
    plain.model.to(device)
    codes, vectors = plain.model.vq.encode(images)
    again, same = packed_model.model.vq.encode(images)
    assert torch.equal(again, codes)
    assert torch.equal(same, vectors)
    pixels = packed_model.model.vq.decode(codes)
    assert torch.equal(pixels, plain.model.vq.decode(codes))
    assert pixels.device.type == device


def test_a_pass_counts_the_copy_of_the_largest_weight():
    one = JanusPro(WIDE, storage=INT8)
    plain = JanusPro(WIDE)
    largest = max(m.weight.numel() for m in one.modules() if isinstance(m, PackedLinear))
    assert one.drawing_bytes(2, 40, 1) - plain.drawing_bytes(2, 40, 1) == 4 * largest


@pytest.mark.parametrize(
    "changed",
    [
        Mock(side_effect=RuntimeError("changed")),
        lambda x, weight, scale: torch.zeros(len(x), len(weight)).bfloat16(),
        lambda x, weight, scale: (F.linear(x, weight.bfloat16()) * scale + len(x) * 1e-2),
        lambda x: x,
    ],
    ids=["an error", "another result", "a row depends on its company", "other arguments"],
)
def test_a_private_product_that_changed_is_found_out(monkeypatch, changed):
    monkeypatch.setattr(torch.ops.aten, "_weight_int8pack_mm", changed)
    assert not has_int8_product.__wrapped__()


@pytest.mark.skipif(
    version("torch").split("+")[0] not in run.TORCH, reason="not the locked PyTorch"
)
def test_the_locked_pytorch_has_the_private_product():
    assert has_int8_product()


def test_fp8_is_refused_where_the_device_does_not_store_it():
    with pytest.raises(InputError, match="mps does not store; choose int8"):
        resolve_dtype("fp8", torch.device("mps"))
    assert resolve_dtype("int8", torch.device("mps")) == torch.bfloat16
