"""Adapter files: what is saved comes back, for the base it was trained on and no other."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.checkpoints.adapter import (
    index_fingerprint,
    load_adapter,
    open_adapter,
)
from arrag_engine.checkpoints.merge import merge_adapter
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.errors import InputError
from arrag_engine.faid import AdapterConfig, Faid, assemble
from arrag_engine.retrieval import layers_of, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling
from tests.folders import deepseek_folder, long
from tests.tiny import (
    BLANK,
    PROMPT,
    tiny_adapter,
    tiny_config,
    tiny_index,
    tiny_model,
    write_adapter,
    write_tiny,
)

FP32 = torch.float32
CONFIGS = {
    "everything": AdapterConfig((0,), (1, 2), rank=4, alpha=8.0, head=True),
    "blenders alone": AdapterConfig((0, 1), (2,)),
    "no blender": AdapterConfig((), (1, 2), rank=3, alpha=3.0, head=True),
}


@pytest.fixture(scope="module")
def base(model_file):
    return load_checkpoint(model_file, FP32)


@pytest.fixture(scope="module")
def adapter_file(tmp_path_factory, model_file):
    return write_adapter(tmp_path_factory.mktemp("adapter") / "small.safetensors", model_file)


def drawn(model, faid, index, weight=0.0):
    codebook, options = model.vq.codebook(torch.device("cpu")), RetrievalOptions(weight=weight)
    retriever = make_retriever(index, model.config.grid, codebook, options)
    recipe = Recipe(PROMPT, BLANK, Sampling(cfg=2), layers_of(retriever), faid)
    return draw_pictures(model, recipe, [3], 9).tokens


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_is_saved_comes_back_and_draws_the_same(tmp_path, base, model_file, index, config):
    path = write_adapter(tmp_path / "a.safetensors", model_file, config)
    info = open_adapter(path).info
    assert (info.config, info.base, info.index) == (config, "tiny", "tiny-index")
    loaded = load_adapter(path, base, FP32)
    state = tiny_adapter(base.model, config).state_dict()
    straight = assemble(base.model.config, config, lambda name: state[name], FP32)
    assert loaded.state_dict().keys() == straight.state_dict().keys()
    for name, tensor in straight.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert torch.equal(
        drawn(base.model, Faid(loaded), index), drawn(base.model, Faid(straight), index)
    )


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_adapter_to_merged_checkpoint_and_back_draws_the_same(
    tmp_path, base, model_file, index, config
):
    path = write_adapter(tmp_path / "a.safetensors", model_file, config)
    merge_adapter(model_file, path, tmp_path / "merged.safetensors")
    merged = load_checkpoint(tmp_path / "merged.safetensors", FP32)
    adapter = load_adapter(path, base, FP32)
    wanted = drawn(base.model, Faid(adapter), index)
    if config.blender_layers:
        assert merged.faid.config == AdapterConfig(config.blender_layers, config.hops)
        found = drawn(merged.model, Faid(merged.faid), index)
    else:
        assert merged.faid is None
        found = drawn(merged.model, None, index)
    assert torch.equal(found, wanted)
    assert not torch.equal(drawn(base.model, None, index), wanted)


def test_a_merged_checkpoint_has_the_published_names_and_config(tmp_path, model_file, adapter_file):
    merge_adapter(model_file, adapter_file, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        names, header = set(file.keys()), file.metadata()
    with safe_open(model_file, "pt") as file:
        added = names - set(file.keys())
    prefix = "language_model.model.layers.0."
    assert added == {
        *(f"{prefix}blender.{conv}.{kind}" for conv in ("conv1", "conv12", "conv2", "conv22")
          for kind in ("weight", "bias")),
        *(f"{prefix}blender.mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
        f"{prefix}blender.conv_weights",
        f"{prefix}retrieval_layernorm.weight",
    }  # fmt: skip
    language = json.loads(header["config"])["language_config"]
    assert (language["num_SmoothPatchBlender"], language["num_hop"]) == (2, [1, 2])


def test_an_adapter_fits_the_base_in_any_dtype_and_layout(tmp_path, square):
    folder = tmp_path / "folder"
    folder.mkdir()
    deepseek_folder(folder, square)
    one = write_tiny(tmp_path / "one.safetensors", square)
    path = write_adapter(tmp_path / "a.safetensors", one)
    for dtype in (FP32, torch.bfloat16, torch.float16):
        base = load_checkpoint(folder, dtype)
        adapter = load_adapter(path, base, dtype)
        assert {t.dtype for t in adapter.state_dict().values()} == {dtype}


def test_an_adapter_for_another_base_is_refused_with_both_names(tmp_path, adapter_file):
    other = load_checkpoint(write_tiny(tmp_path / "stranger.safetensors", tiny_model(8)), FP32)
    with pytest.raises(InputError, match=r"trained on 'tiny', this model is 'stranger' \(weights"):
        load_adapter(adapter_file, other, FP32)
    with pytest.raises(InputError, match="'tiny', this model is 'stranger'"):
        merge_adapter(tmp_path / "stranger.safetensors", adapter_file, tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_an_adapter_of_another_width_is_refused_with_both_widths(tmp_path, adapter_file):
    wide = tiny_model(0, tiny_config(hidden=48))
    other = load_checkpoint(write_tiny(tmp_path / "wide.safetensors", wide), FP32)
    with pytest.raises(InputError, match=r"'tiny', this model is 'wide' \(width 32 against 48\)"):
        load_adapter(adapter_file, other, FP32)


def change_header(path, out, **changes):
    with safe_open(path, "pt") as file:
        header = file.metadata()
    info = json.loads(header["info"])
    info["config"] |= changes.pop("config", {})
    info |= changes.pop("info", {})
    save_file(load_file(path), out, {**header, "info": json.dumps(info), **changes})
    return out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "arrag-model"}, "is not an adapter .*'arrag-model'"),
        ({"version": "9"}, "has adapter version '9', this program reads 1"),
        ({"info": {"base": 3}}, "header of .* is damaged"),
        ({"info": {"surplus": 3}}, "header of .* is damaged"),
        ({"config": {"rank": "4"}}, "header of .* is damaged"),
        ({"config": {"rank": 10**9}}, "header of .* is damaged"),
        ({"config": {"alpha": float("nan")}}, "header of .* is damaged"),
        ({"config": {"alpha": 10**400}}, "header of .* is damaged"),
        ({"config": {"dropout": "0.1"}}, "header of .* is damaged"),
        ({"config": {"dropout": 7}}, "header of .* is damaged"),
        ({"config": {"dropout": float("nan")}}, "header of .* is damaged"),
        ({"config": {"candidates": 0}}, "header of .* is damaged"),
        ({"config": {"candidates": "4"}}, "header of .* is damaged"),
        ({"config": {"hops": [1, 3]}}, "header of .* is damaged"),
        ({"config": {"blender_layers": [7]}}, "header of .* is damaged"),
        ({"config": {"order": "sideways"}}, "header of .* is damaged"),
        ({"config": {"order": ["raster"]}}, "header of .* is damaged"),
        ({"config": {"blender_layers": [0, 1]}}, "lacks 14 tensors"),
        ({"config": {"blender_layers": []}}, "14 tensors that no FAiD adapter"),
        ({"config": {"rank": 5}}, r"has shape \[4, 32\], expected \[5, 32\]"),
    ],
)
def test_a_damaged_adapter_is_refused(tmp_path, base, adapter_file, changes, message):
    path = change_header(adapter_file, tmp_path / "a.safetensors", **changes)
    with pytest.raises(InputError, match=message):
        load_adapter(path, base, FP32)


@pytest.mark.parametrize("content", [b"", b"not an adapter", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(tmp_path, base, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"a\.safetensors is truncated or not a \.safetensors file"
    ):
        load_adapter(path, base, FP32)


def test_a_cut_adapter_is_refused(tmp_path, base, adapter_file):
    path = tmp_path / "a.safetensors"
    path.write_bytes(adapter_file.read_bytes()[:-10])
    with pytest.raises(InputError, match="truncated"):
        load_adapter(path, base, FP32)


@pytest.mark.parametrize("name", ["none.safetensors", "folder"])
def test_a_missing_adapter_is_refused(tmp_path, base, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="there is no adapter file"):
        load_adapter(tmp_path / name, base, FP32)


def test_an_index_is_known_by_its_tokens_and_codebook(model, index):
    assert index_fingerprint(index) == index_fingerprint(tiny_index(model))
    assert index_fingerprint(index) != index_fingerprint(tiny_index(model, seed=1))
    tokens = index.tokens.copy()
    tokens[-1, -1] ^= 1
    assert index_fingerprint(index) != index_fingerprint(replace(index, tokens=tokens))


def test_room_for_a_long_prompt_does_not_change_the_fingerprint(tmp_path, square):
    """Only weights count."""
    one = load_checkpoint(write_tiny(tmp_path / "a.safetensors", square), FP32)
    config = replace(long(square.config), llama=replace(square.config.llama, max_positions=2048))
    square_longer = tiny_model(2, config)
    other = load_checkpoint(write_tiny(tmp_path / "b.safetensors", square_longer), FP32)
    assert one.fingerprint == other.fingerprint
