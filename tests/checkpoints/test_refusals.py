"""What is wrong with a model file is said in one sentence."""

import json
import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from arrag_engine.checkpoints import describe_config, load_checkpoint, write_checkpoint
from arrag_engine.errors import InputError
from arrag_engine.grid import Grid
from tests.folders import (
    as_bin,
    as_safetensors,
    as_sharded_safetensors,
    deepseek_folder,
    write_config,
)
from tests.tiny import blender_tensors, official_tensors, tiny_tokenizer, write_tiny

FP32 = torch.float32


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
        ("lora", "unfinished checkpoint"),
        ("peft", "unfinished checkpoint"),
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


@pytest.mark.parametrize("told", [["num_hop"], 5, "num_hop", None, True])
def test_a_config_whose_parts_are_no_tables_still_describes_blenders(tmp_path, square, told):
    """What it says of them is compared with the tensors, which count."""
    blenders = blender_tensors(square.config.llama.hidden_size, (0,))
    path = tmp_path / "a.safetensors"
    config = describe_config(square.config)
    heads = config["language_config"]
    config |= {"language_config": told, "text_config": heads}
    tensors = official_tensors(square) | blenders
    write_checkpoint(path, tensors, square.config.grid, config, tiny_tokenizer())
    assert load_checkpoint(path, FP32).faid is not None


@pytest.mark.parametrize("depth", [10, 900])
def test_a_deep_config_is_refused_in_brief(tmp_path, square, depth):
    deep = json.loads("[" * depth + "]" * depth)
    checkpoint = load_checkpoint(write_tiny(tmp_path / "a.safetensors", square), FP32)
    checkpoint = replace(checkpoint, config={"generation_config": {"temperature": deep}})
    with pytest.raises(InputError, match="which are not numbers") as caught:
        _ = checkpoint.sampling
    assert len(str(caught.value)) < 300


def test_a_tokenizer_of_a_larger_model_is_refused(tmp_path, square):
    table = json.loads(tiny_tokenizer())
    table["model"]["vocab"]["red"] = square.config.llama.vocab_size
    config, path = describe_config(square.config), tmp_path / "a.safetensors"
    tensors, grid = official_tensors(square), square.config.grid
    write_checkpoint(path, tensors, grid, config, json.dumps(table))
    encoder = load_checkpoint(path, FP32).prompt_encoder
    assert encoder.encode("two apples").ids
    with pytest.raises(InputError, match="makes the id 40, the model has 40 ids"):
        encoder.encode("red")
