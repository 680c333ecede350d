"""Models from and to files, in all layouts; what is wrong with a file is said in one sentence."""

import json
import logging
import random
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from arrag_engine import checkpoint as checkpoint_module
from arrag_engine.checkpoint import (
    convert_checkpoint,
    describe_config,
    load_checkpoint,
    open_checkpoint,
    resolve_dtype,
    write_checkpoint,
)
from arrag_engine.decode import draw_pictures
from arrag_engine.errors import InputError
from arrag_engine.grid import Grid
from arrag_engine.sampling import Sampling
from tests.tiny import (
    PAD_ID,
    PROMPT,
    official_tensors,
    tiny_config,
    tiny_model,
    tiny_tokenizer,
    transformers_name,
)

FP32 = torch.float32
UNDERSTANDING = {
    "vision_model.vision_tower.norm.weight": torch.zeros(5),
    "aligner.layers.0.weight": torch.zeros(5, 5),
    "language_model.lm_head.weight": torch.zeros(40, 32),
    "gen_vision_model.quantize.codebook_used": torch.zeros(65536),
}
BLENDER = {
    "language_model.model.layers.0.blender.conv1.weight": torch.zeros(32, 32, 2, 2),
    "language_model.model.layers.0.blender.conv_weights": torch.zeros(2),
    "language_model.model.layers.0.retrieval_layernorm.weight": torch.ones(32),
}
VISION = {"vision_config": {"image_size": 12, "patch_size": 2}}


def long(config):
    """With room for 576 tokens of picture."""
    return replace(config, llama=replace(config.llama, max_positions=1024))


@pytest.fixture(scope="module")
def square():
    """A 24x24 model: the grid that deepseek's layout has without saying so."""
    return tiny_model(2, long(tiny_config(side=24)))


def write_config(folder, model, **more):
    (folder / "config.json").write_text(json.dumps(describe_config(model.config) | more))
    (folder / "tokenizer.json").write_text(tiny_tokenizer(), encoding="utf-8")


def as_safetensors(folder, tensors):
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def as_bin(folder, tensors):
    torch.save(tensors, folder / "pytorch_model.bin")


def halves(tensors):
    names = sorted(tensors)
    return [{n: tensors[n] for n in names[::2]}, {n: tensors[n] for n in names[1::2]}]


def as_sharded_bin(folder, tensors):
    weight_map = {}
    for i, part in enumerate(halves(tensors), start=1):
        name = f"pytorch_model-0000{i}-of-00002.bin"
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def as_sharded_safetensors(folder, tensors):
    for i, part in enumerate(halves(tensors), start=1):
        save_file(part, folder / f"model-0000{i}-of-00002.safetensors")


WRITERS = [as_safetensors, as_bin, as_sharded_bin, as_sharded_safetensors]


def deepseek_folder(folder, model, write=as_safetensors, more=UNDERSTANDING):
    write_config(folder, model, vision_config={"params": {"image_size": 384}, "patch_size": 16})
    write(folder, official_tensors(model) | more)
    return folder


def assert_same_weights(model, wanted):
    found, wanted = model.state_dict(), wanted.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def drawn(model, seed=3):
    return draw_pictures(model, PROMPT, PAD_ID, Sampling(cfg=2), [seed], window=9).tokens


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


def test_the_released_faid_checkpoint_loads_and_says_what_it_leaves_out(tmp_path, square, caplog):
    deepseek_folder(tmp_path, square, more=UNDERSTANDING | BLENDER)
    with caplog.at_level(logging.WARNING):
        checkpoint = load_checkpoint(tmp_path, FP32)
    assert_same_weights(checkpoint.model, square)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "FAiD blenders" in caplog.text


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
    read = []

    def counting(files):
        weights = real(files)
        for name, reader in weights.readers.items():
            weights.readers[name] = lambda n=name, r=reader: (read.append(n), r())[1]
        return weights

    real = checkpoint_module.open_weights
    monkeypatch.setattr(checkpoint_module, "open_weights", counting)
    deepseek_folder(tmp_path, square, more=UNDERSTANDING | BLENDER)
    load_checkpoint(tmp_path, FP32)
    assert sorted(read) == sorted(official_tensors(square))


def test_opening_reads_no_tensor_at_all(tmp_path, square, monkeypatch):
    monkeypatch.setattr(checkpoint_module.Weights, "read", lambda *_: pytest.fail("read a tensor"))
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
    with pytest.raises(InputError, match="dtype is 'int8'; choose one of auto, bf16"):
        resolve_dtype("int8", cpu)


@pytest.mark.parametrize("write", WRITERS)
def test_converting_keeps_every_weight_and_draws_the_same(tmp_path, square, write):
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
    assert torch.equal(drawn(checkpoint.model), drawn(square))
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


def test_converting_without_a_tokenizer_writes_nothing(tmp_path, square):
    deepseek_folder(tmp_path, square)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json is missing; put"):
        convert_checkpoint(tmp_path, tmp_path / "one.safetensors")
    assert not (tmp_path / "one.safetensors").exists()


def test_lone_weights_name_both_missing_files_and_their_folder(tmp_path, square):
    as_safetensors(tmp_path, official_tensors(square))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(InputError) as caught:
            load_checkpoint(path, FP32)
        message = str(caught.value)
        assert "config.json and tokenizer.json missing" in message
        assert f"into {tmp_path} " in message


def test_a_missing_config_alone_is_named_alone(tmp_path, square):
    deepseek_folder(tmp_path, square)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"^config\.json missing: put the model's config\.json"):
        load_checkpoint(tmp_path, FP32)


def test_a_missing_tokenizer_is_only_missed_when_text_comes(tmp_path, square):
    deepseek_folder(tmp_path, square)
    (tmp_path / "tokenizer.json").unlink()
    checkpoint = load_checkpoint(tmp_path, FP32)
    with pytest.raises(InputError, match=r"tokenizer\.json is missing; put .* into"):
        _ = checkpoint.prompt_encoder


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"{}", b"[" * 100_000])
def test_a_damaged_tokenizer_is_refused(tmp_path, square, content):
    deepseek_folder(tmp_path, square)
    (tmp_path / "tokenizer.json").write_bytes(content)
    checkpoint = load_checkpoint(tmp_path, FP32)
    with pytest.raises(InputError, match="tokenizer"):
        _ = checkpoint.prompt_encoder


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", "there is no model at"),
        ("notes.txt", "neither a folder nor a .safetensors or .bin file"),
        ("empty", r"no model\*\.safetensors"),
    ],
)
def test_a_path_to_no_model_is_refused(tmp_path, place, message):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        load_checkpoint(tmp_path / place, FP32)


def broken(tensors, change):
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del tensors[name]
    elif change == "shape":
        tensors[name] = tensors[name][:-1].clone()
    elif change == "transposed":
        tensors["gen_head.vision_head.weight"] = tensors["gen_head.vision_head.weight"].T.clone()
    elif change == "layer gone":
        for key in [k for k in tensors if ".layers.0." in k and "language" in k]:
            del tensors[key]
    elif change == "unknown":
        tensors["language_model.model.layers.0.adapter.weight"] = torch.zeros(3)
    elif change == "lora":
        tensors["language_model.model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(3)
    elif change == "peft":
        for key in list(tensors):
            tensors[f"base_model.model.{key}"] = tensors.pop(key)
    elif change == "integers":
        tensors[name] = tensors[name].to(torch.int32)
    elif change == "no picture head":
        for key in [k for k in tensors if k.startswith("gen_")]:
            del tensors[key]
    elif change == "other model":
        for key in list(tensors):
            tensors[f"unet.{key}"] = tensors.pop(key)
    return tensors


@pytest.mark.parametrize("write", [as_safetensors, as_bin])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "missing",
            r"lacks 1 tensors, the first is language_model\.model\.layers\.1\.mlp\.up_proj",
        ),
        ("shape", r"up_proj\.weight has shape \[47, 32\], expected \[48, 32\]"),
        ("transposed", r"gen_head\.vision_head\.weight has shape \[32, 64\], expected \[64, 32\]"),
        ("layer gone", "download"),
        ("unknown", r"has 1 tensors that no Janus-Pro has, .*layers\.0\.adapter\.weight"),
        ("lora", "half-way checkpoint"),
        ("peft", "half-way checkpoint"),
        ("integers", r"up_proj\.weight is torch\.int32; only"),
        ("no picture head", "lacks the tensor"),
        ("other model", "not a Janus-Pro checkpoint"),
    ],
)
def test_a_broken_checkpoint_is_refused(tmp_path, square, write, change, message):
    tensors = broken(official_tensors(square), change)
    write_config(tmp_path, square)
    write(tmp_path, {n: t.contiguous() for n, t in tensors.items()})
    with pytest.raises(InputError, match=message):
        load_checkpoint(tmp_path, FP32)


def test_a_missing_shard_without_an_index_is_told_as_missing_tensors(tmp_path, square):
    deepseek_folder(tmp_path, square, as_sharded_safetensors)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="download"):
        load_checkpoint(tmp_path, FP32)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", "2", "model version '2', this program reads 1"),
        ("config", "{", "header of .* is damaged"),
        ("config", "[]", "header of .* is damaged"),
        ("config", "[" * 100_000, "header of .* is damaged"),
        ("grid", "6", "header of .* is damaged"),
        ("grid", "999x999", "header of .* is damaged"),
        ("config", None, "header of .* is damaged"),
        ("grid", None, "header of .* is damaged"),
        ("version", None, "model version None"),
    ],
    ids=str,
)
def test_a_damaged_header_of_our_own_file_is_refused(tmp_path, model, field, value, message):
    header = {
        "format": "arrag-model",
        "version": "1",
        "grid": "6x6",
        "config": json.dumps(describe_config(model.config)),
        "tokenizer": tiny_tokenizer(),
    }
    header.pop(field)
    if value is not None:
        header[field] = value
    save_file(official_tensors(model), tmp_path / "a.safetensors", header)
    with pytest.raises(InputError, match=message):
        load_checkpoint(tmp_path / "a.safetensors", FP32)


@pytest.mark.parametrize("tokenizer", ["", "{}", "not JSON"])
def test_a_damaged_tokenizer_in_our_own_file_is_refused(tmp_path, model, tokenizer):
    config = describe_config(model.config)
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, official_tensors(model), Grid(6, 6), config, tokenizer)
    checkpoint = load_checkpoint(path, FP32)
    with pytest.raises(InputError, match="the tokenizer cannot be read"):
        _ = checkpoint.prompt_encoder


def test_a_damaged_file_is_refused_or_loads_whole(tmp_path, model_file, pytestconfig):
    """Bytes changed in the header, where all the structure is, or cut off at the end."""
    data, refused = model_file.read_bytes(), 0
    header_end = 8 + int.from_bytes(data[:8], "little")
    for seed in range(pytestconfig.getoption("mutations")):
        rng, damaged = random.Random(seed), bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(header_end)] = rng.randrange(256)
        keep = len(data) if rng.random() < 0.8 else rng.randrange(len(data))
        (tmp_path / "a.safetensors").write_bytes(damaged[:keep])
        try:
            load_checkpoint(tmp_path / "a.safetensors", FP32)
        except InputError:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"mutation {seed} ends in {error!r}") from error
    assert refused > 0


def test_a_prompt_has_the_room_that_the_picture_leaves(model_file):
    assert load_checkpoint(model_file, FP32).prompt_encoder.max_tokens == 512 - 36
