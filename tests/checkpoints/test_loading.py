"""Models from and to files, in all layouts; what is wrong with a file is said in one sentence."""

import json
import logging
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from arrag_engine.checkpoints import (
    convert_checkpoint,
    describe_config,
    load_checkpoint,
    open_checkpoint,
    resolve_dtype,
)
from arrag_engine.checkpoints.weights import Weights
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.errors import InputError
from arrag_engine.faid import AdapterConfig
from arrag_engine.models.janus.layouts import official_name
from arrag_engine.settings import Sampling
from tests.folders import (
    BLENDER,
    UNDERSTANDING,
    VISION,
    WRITERS,
    as_bin,
    as_safetensors,
    deepseek_folder,
    long,
    write_config,
)
from tests.tiny import (
    BLANK,
    PROMPT,
    blender_tensors,
    official_tensors,
    tiny_config,
    tiny_model,
    transformers_name,
)

FP32 = torch.float32


def assert_same_weights(model, wanted):
    found, wanted = model.state_dict(), wanted.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def drawn(model, seed=3):
    return draw_pictures(model, Recipe(PROMPT, BLANK, Sampling(cfg=2)), [seed], 9).tokens


@pytest.mark.parametrize("write", WRITERS)
def test_a_deepseek_folder_loads(tmp_path, square, write):
    checkpoint = load_checkpoint(deepseek_folder(tmp_path, square, write), FP32)
    assert checkpoint.model.config == square.config
    assert_same_weights(checkpoint.model, square)
    assert len(checkpoint.prompt_encoder.encode("two red apples").ids) > 4


def test_a_transformers_folder_loads(tmp_path, model):
    described = describe_config(model.config)
    config = {"model_type": "janus", "text_config": described["language_config"], **VISION}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {transformers_name(n): t for n, t in official_tensors(model).items()}
    as_safetensors(tmp_path, tensors | {"lm_head.weight": torch.zeros(40, 32)})
    loaded = load_checkpoint(tmp_path, FP32).model
    assert loaded.config == model.config
    assert_same_weights(loaded, model)


def test_our_single_file_loads(model, model_file):
    checkpoint = load_checkpoint(model_file, FP32)
    assert checkpoint.model.config == model.config
    assert_same_weights(checkpoint.model, model)
    assert torch.equal(drawn(checkpoint.model), drawn(model))
    assert checkpoint.prompt_encoder.encode("a red car").unknown == []


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_the_weights_of_a_folder_can_be_named_themselves(tmp_path, square, name):
    write = as_bin if name.endswith("bin") else as_safetensors
    deepseek_folder(tmp_path, square, write)
    assert_same_weights(load_checkpoint(tmp_path / name, FP32).model, square)


@pytest.mark.parametrize("hops", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("layers", [(0,), (0, 1), (1,)])
def test_the_released_faid_checkpoint_loads_with_its_blenders(tmp_path, square, hops, layers):
    """Which layers and hops there are, the tensors tell; the config need not."""
    blenders = blender_tensors(32, layers, hops)
    deepseek_folder(tmp_path, square, more=UNDERSTANDING | blenders)
    checkpoint = load_checkpoint(tmp_path, FP32)
    assert_same_weights(checkpoint.model, square)
    assert checkpoint.faid.config == AdapterConfig(layers, hops)
    for i, layer in checkpoint.faid.by_layer.items():
        prefix = f"language_model.model.layers.{i}."
        norm = blenders[f"{prefix}retrieval_layernorm.weight"]
        assert torch.equal(layer.retrieval_layernorm.weight, norm)
        assert torch.equal(layer.blender.mlp[0].bias, blenders[f"{prefix}blender.mlp.0.bias"])


def test_blenders_are_kept_once_and_folded_in_the_dtype_asked_for(tmp_path, square):
    """12 matrices around and one in the middle, instead of 26 of two convolutions each."""
    deepseek_folder(tmp_path, square, more=UNDERSTANDING | BLENDER)
    faid = load_checkpoint(tmp_path, torch.bfloat16).faid
    assert {t.dtype for t in faid.state_dict().values()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in faid.parameters())
    shapes = {name: tuple(t.shape) for name, t in faid.layers["0"].blender.state_dict().items()}
    assert shapes == {
        "around.weight": (32, 12 * 32),
        "around.bias": (32,),
        "centre.weight": (32, 32),
        "mlp.0.weight": (32, 32),
        "mlp.0.bias": (32,),
        "mlp.2.weight": (1, 32),
        "mlp.2.bias": (1,),
    }


@pytest.mark.parametrize(
    ("told", "warned"),
    [
        ({"num_SmoothPatchBlender": 2, "num_hop": [1, 2]}, False),
        ({"num_SmoothPatchBlender": 1, "num_hop": [1, 2]}, True),
        ({"num_SmoothPatchBlender": 2, "num_hop": [1]}, True),
        ({}, False),
    ],
)
def test_a_config_that_tells_of_other_blenders_is_only_a_warning(
    tmp_path, square, caplog, told, warned
):
    deepseek_folder(tmp_path, square, more=BLENDER)
    config = json.loads((tmp_path / "config.json").read_text())
    config["language_config"] |= told
    (tmp_path / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(tmp_path, FP32).faid.config == AdapterConfig((0,), (1, 2))
    assert bool(caplog.records) == warned
    assert not warned or "layers [0] with hops [1, 2], from the tensors" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blender.conv12.bias": None}, "lacks 1 tensors, the first is .*conv12.bias"),
        ({"retrieval_layernorm.weight": None}, "lacks 1 tensors, .*retrieval_layernorm"),
        ({"blender.conv3.weight": torch.zeros(2)}, r"hops \[1, 2, 3\], only \[1\], \[2\]"),
        ({"blender.mlp.4.weight": torch.zeros(2)}, "1 tensors that no Janus-Pro has"),
        ({"blender.conv22.weight": torch.zeros(3, 32, 3, 3)}, r"shape \[3, 32, 3, 3\], expected"),
    ],
)
def test_blenders_that_are_not_whole_are_refused(tmp_path, square, change, message):
    blenders = dict(BLENDER)
    for name, tensor in change.items():
        full = f"language_model.model.layers.0.{name}"
        blenders.pop(full) if tensor is None else blenders.update({full: tensor})
    deepseek_folder(tmp_path, square, more=blenders)
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_fingerprint_is_the_same_in_every_dtype_and_layout(tmp_path, square, dtype):
    wanted = load_checkpoint(deepseek_folder(tmp_path, square), FP32).fingerprint
    other = tmp_path / "other"
    other.mkdir()
    tensors = official_tensors(square)
    write_config(other, square)
    as_safetensors(other, {n: t.to(torch.bfloat16) for n, t in tensors.items()})
    assert load_checkpoint(other, dtype).fingerprint == wanted


@pytest.mark.parametrize(
    "name", ["llama.layers.1.self_attn.q_proj.weight", "gen_head.vision_head.weight"]
)
def test_another_weight_is_another_fingerprint(tmp_path, square, name):
    one = load_checkpoint(deepseek_folder(tmp_path, square), FP32).fingerprint
    tensors = official_tensors(square)
    tensors[official_name(name)] = tensors[official_name(name)] * 1.02
    as_safetensors(tmp_path, tensors)
    assert load_checkpoint(tmp_path, FP32).fingerprint != one


def test_a_vanilla_checkpoint_warns_of_nothing(tmp_path, square, caplog):
    load_checkpoint(deepseek_folder(tmp_path, square), FP32)
    assert caplog.records == []


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_key_heads_are_counted_from_the_tensors(tmp_path, kv_heads):
    model = tiny_model(0, long(tiny_config(side=24, kv_heads=kv_heads)))
    deepseek_folder(tmp_path, model)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["language_config"]["num_key_value_heads"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_checkpoint(tmp_path, FP32).model.config == model.config


def test_the_understanding_branch_is_never_read(tmp_path, square, monkeypatch):
    read, real = [], Weights.read

    def counting(weights, name, *how, **more):
        read.append(name)
        return real(weights, name, *how, **more)

    monkeypatch.setattr(Weights, "read", counting)
    deepseek_folder(tmp_path, square, more=UNDERSTANDING | BLENDER)
    load_checkpoint(tmp_path, FP32)
    assert set(read) == {*official_tensors(square), *BLENDER}


def test_opening_reads_no_tensor_at_all(tmp_path, square, monkeypatch):
    monkeypatch.setattr(Weights, "read", lambda *_: pytest.fail("read a tensor"))
    opened = open_checkpoint(deepseek_folder(tmp_path, square))
    assert opened.janus == square.config


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_decoder_has_the_dtype_asked_for_and_the_vq_always_float32(
    tmp_path, square, stored, dtype
):
    tensors = {n: t.to(stored) for n, t in official_tensors(square).items()}
    write_config(tmp_path, square)
    as_safetensors(tmp_path, tensors)
    model = load_checkpoint(tmp_path, dtype).model
    assert model.dtype == dtype
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == (FP32 if name.startswith("vq.") else dtype)


def test_a_loaded_model_neither_trains_nor_drops_out(model_file):
    model = load_checkpoint(model_file, FP32).model
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_loading_reports_progress_to_the_end(model, model_file):
    seen = []
    load_checkpoint(model_file, FP32, progress=lambda done, total: seen.append((done, total)))
    count = len(model.state_dict())
    assert seen == [(i, count) for i in range(1, count + 1)]


def test_a_dtype_is_named_or_chosen_by_the_device():
    cpu = torch.device("cpu")
    assert resolve_dtype("fp16", cpu) == torch.float16
    assert resolve_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
    with pytest.raises(InputError, match="dtype is 'int4'; choose one of auto, bf16"):
        resolve_dtype("int4", cpu)


@pytest.mark.parametrize("write", WRITERS)
def test_converting_keeps_every_weight(tmp_path, square, write):
    folder, out = tmp_path / "model", tmp_path / "one.safetensors"
    folder.mkdir()
    deepseek_folder(folder, square, write, UNDERSTANDING | BLENDER)
    convert_checkpoint(folder, out)
    shutil.rmtree(folder)
    with safe_open(out, "pt") as file:
        names = set(file.keys())
        assert names == {*official_tensors(square), *BLENDER}
        for name, tensor in (official_tensors(square) | BLENDER).items():
            assert torch.equal(file.get_tensor(name), tensor)
    checkpoint = load_checkpoint(out, FP32)
    assert checkpoint.model.config == square.config
    assert_same_weights(checkpoint.model, square)
    assert checkpoint.prompt_encoder.encode("red").ids[0] == 1


def test_converting_keeps_the_stored_precision(tmp_path, square):
    tensors = {n: t.bfloat16() for n, t in official_tensors(square).items()}
    write_config(tmp_path, square)
    as_safetensors(tmp_path, tensors)
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    convert_checkpoint(tmp_path, one)
    convert_checkpoint(one, two)
    for path in (one, two):
        found = load_file(path)
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
        assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


def test_converting_takes_weights_that_a_bin_file_ties(tmp_path, square):
    tensors = official_tensors(square)
    norm = "language_model.model.layers.{}.input_layernorm.weight"
    tensors[norm.format(1)] = tensors[norm.format(0)]
    write_config(tmp_path, square)
    as_bin(tmp_path, tensors)
    convert_checkpoint(tmp_path, tmp_path / "out.safetensors")
    layers = load_checkpoint(tmp_path / "out.safetensors", FP32).model.llama.layers
    assert torch.equal(layers[1].input_layernorm.weight, layers[0].input_layernorm.weight)


def test_the_sampling_that_suits_a_model_travels_with_it(tmp_path, square):
    suits = Sampling(cfg=1.5, temperature=0.25)
    deepseek_folder(tmp_path, square, as_safetensors)
    config = json.loads((tmp_path / "config.json").read_text())
    assert load_checkpoint(tmp_path, torch.float32).sampling == Sampling()
    config |= describe_config(square.config, suits)
    (tmp_path / "config.json").write_text(json.dumps(config))
    convert_checkpoint(tmp_path, tmp_path / "one.safetensors")
    assert load_checkpoint(tmp_path / "one.safetensors", torch.float32).sampling == suits


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"guidance_scale": "5"}, "recommends {'cfg': '5'}, which are not numbers"),
        ({"temperature": True}, "which are not numbers"),
        ({"guidance_scale": -1}, "cfg is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_recommended_nonsense_is_refused_when_it_is_used(tmp_path, square, told, message):
    deepseek_folder(tmp_path, square, as_safetensors)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"generation_config": told}))
    checkpoint = load_checkpoint(tmp_path, torch.float32)
    with pytest.raises(InputError, match=message):
        _ = checkpoint.sampling


def test_converting_without_a_tokenizer_writes_nothing(tmp_path, square):
    deepseek_folder(tmp_path, square)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json is missing; put"):
        convert_checkpoint(tmp_path, tmp_path / "one.safetensors")
    assert not (tmp_path / "one.safetensors").exists()


def test_a_prompt_has_the_room_that_the_picture_leaves(model_file):
    assert load_checkpoint(model_file, FP32).prompt_encoder.max_tokens == 512 - 36


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_json_beside_a_model_may_have_a_byte_order_mark(tmp_path, square, name):
    deepseek_folder(tmp_path, square)
    path = tmp_path / name
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    checkpoint = load_checkpoint(tmp_path, FP32)
    assert checkpoint.model.config == square.config
    assert checkpoint.prompt_encoder.encode("red").ids[0] == 1


def test_a_tokenizer_that_is_a_pointer_is_named(tmp_path, square):
    deepseek_folder(tmp_path, square)
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match=r"tokenizer\.json is a Git LFS pointer"):
        _ = load_checkpoint(tmp_path, FP32).prompt_encoder


def test_a_gguf_file_is_refused_by_name(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"model\.gguf is a GGUF file, which this program"):
        load_checkpoint(tmp_path / "model.gguf", FP32)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("write", WRITERS)
def test_a_loaded_model_outlives_its_files(tmp_path, square, write):
    deepseek_folder(tmp_path, square, write)
    checkpoint = load_checkpoint(tmp_path, FP32)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    for path in tmp_path.iterdir():
        os.truncate(path, 10)
    assert_same_weights(checkpoint.model, square)
