"""Names and sizes of every checkpoint layout."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arrag_engine.checkpoints import describe_config
from arrag_engine.errors import InputError
from arrag_engine.grid import Grid
from arrag_engine.models.janus.layouts import (
    BLENDER,
    blender_names,
    official_name,
    our_names,
    read_blenders,
    read_config,
)
from arrag_engine.models.janus.model import JanusConfig, JanusPro
from arrag_engine.models.janus.vq import VQConfig
from arrag_engine.settings import AdapterConfig
from tests.tiny import official_tensors, tiny_config, tiny_model, transformers_name

REAL_KEYS = Path(__file__).parents[4] / "shared" / "oracle" / "real_checkpoint_keys.json"


def shapes_of(config: JanusConfig):
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in JanusPro(config).state_dict().items()}


@pytest.fixture(scope="module")
def official(model):
    return list(official_tensors(model))


def test_official_names_lead_to_the_engines_and_back(model, official):
    assert our_names(official) == dict(zip(official, model.state_dict(), strict=True))
    assert [official_name(ours) for ours in our_names(official).values()] == official


def test_transformers_names_lead_to_the_engines(model, official):
    theirs = [transformers_name(name) for name in official]
    assert list(our_names(theirs).values()) == list(model.state_dict())


@pytest.mark.parametrize(
    "name",
    [
        "vision_model.vision_tower.blocks.0.norm1.weight",
        "aligner.layers.0.weight",
        "language_model.lm_head.weight",
        "gen_vision_model.quantize.codebook_used",
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
        "language_model.model.layers.0.blender.conv1.weight",
        "language_model.model.layers.12.blender.conv_weights",
        "language_model.model.layers.0.retrieval_layernorm.weight",
    ],
)
def test_what_drawing_does_not_need_is_left_out(official, name):
    assert name not in our_names([*official, name])


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.vision_model.x", "model.aligner.fc1.bias"]
)
def test_what_drawing_does_not_need_is_left_out_in_transformers_layout_too(official, name):
    assert name not in our_names([*map(transformers_name, official), name])


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "language_model.model.layers.0.self_attn.q_proj.lora_B.weight",
        "base_model.model.language_model.model.norm.weight",
    ],
)
def test_half_trained_checkpoints_are_refused_and_told_why(official, name):
    with pytest.raises(InputError, match=r"unfinished checkpoint.*merge its LoRA"):
        our_names([*official, name])


@pytest.mark.parametrize("names", [[], ["unet.conv.weight"], ["model.layers.0.mlp.up_proj.weight"]])
def test_other_models_are_refused(names):
    with pytest.raises(InputError, match=f"not a Janus-Pro checkpoint .*{len(names)} tensors"):
        our_names(names)


SIZES = {
    "tiny": tiny_config(),
    "grouped": tiny_config(kv_heads=2),
    "wide": tiny_config(hidden=64, heads=2, kv_heads=1),
    "levels": replace(tiny_config(), vq=VQConfig(64, (1, 2, 2, 4), 2, 96, 30, 4)),
    "one level": replace(tiny_config(), vq=VQConfig(32, (3,), 3, 32, 30, 6)),
}


@pytest.mark.parametrize("config", SIZES.values(), ids=SIZES)
def test_sizes_are_read_from_tensors_and_our_own_config(config):
    assert read_config(shapes_of(config), describe_config(config), config.grid) == config


def test_only_head_count_and_constants_are_believed_of_a_config():
    """Everything a tensor tells is taken from the tensor, whatever the config says."""
    lies = {"hidden_size": 9, "intermediate_size": 9, "num_hidden_layers": 9, "vocab_size": 9}
    section = lies | {"num_attention_heads": 4, "num_key_value_heads": 9, "rope_theta": 500.0}
    read = read_config(shapes_of(tiny_config(kv_heads=2)), {"language_config": section}, Grid(6, 6))
    wanted = tiny_config(kv_heads=2)
    llama = replace(wanted.llama, rope_theta=500.0, max_positions=16384)
    assert read == replace(wanted, llama=llama)


def test_fields_a_config_leaves_out_have_the_published_defaults():
    config = tiny_config(hidden=256, heads=2, kv_heads=2)
    read = read_config(shapes_of(config), {}, None)
    assert (read.llama.num_heads, read.llama.head_dim) == (2, 128)
    assert (read.llama.rope_theta, read.llama.rms_norm_eps) == (10000.0, 1e-6)
    assert read.llama.max_positions == 16384
    assert read.grid == Grid(24, 24)


HEADS = {"num_attention_heads": 4}


@pytest.mark.parametrize(
    ("config", "grid"),
    [
        ({"language_config": HEADS}, Grid(24, 24)),
        (
            {"language_config": HEADS, "vision_config": {"image_size": 96, "patch_size": 16}},
            Grid(24, 24),
        ),
        ({"text_config": HEADS, "vision_config": {"image_size": 96, "patch_size": 16}}, Grid(6, 6)),
        ({"text_config": HEADS, "vision_config": {"image_size": 96}}, Grid(6, 6)),
        ({"text_config": HEADS, "vision_config": {"patch_size": 32}}, Grid(12, 12)),
        ({"text_config": HEADS}, Grid(24, 24)),
    ],
    ids=str,
)
def test_the_grid_is_transformers_but_never_the_understanding_towers(config, grid):
    assert read_config(shapes_of(tiny_config()), config, None).grid == grid
    assert read_config(shapes_of(tiny_config()), config, Grid(3, 5)).grid == Grid(3, 5)


@pytest.mark.parametrize(
    "section",
    [
        {"num_attention_heads": 5},
        {"num_attention_heads": -4},
        {"num_attention_heads": 32},
        {"num_attention_heads": "many"},
        {"num_attention_heads": [4]},
        {"num_attention_heads": math.inf},
        {"num_attention_heads": math.nan},
        {**HEADS, "rope_theta": "warm"},
        {**HEADS, "rope_theta": 10**400},
        {**HEADS, "rope_theta": -5.0},
        {**HEADS, "rope_theta": math.nan},
        {**HEADS, "rms_norm_eps": -1.0},
        {**HEADS, "rms_norm_eps": math.inf},
        {**HEADS, "max_position_embeddings": math.inf},
        {**HEADS, "max_position_embeddings": -5},
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_refused(section):
    with pytest.raises(InputError, match="do not fit together"):
        read_config(shapes_of(tiny_config()), {"language_config": section}, None)


@pytest.mark.parametrize(
    "vision",
    [
        {"image_size": 0},
        {"image_size": -96},
        {"image_size": 10**9},
        {"image_size": math.inf},
        {"image_size": "big"},
        {"patch_size": 0},
        {"patch_size": None},
    ],
    ids=str,
)
def test_a_grid_that_makes_no_sense_is_refused(vision):
    config = {"text_config": HEADS, "vision_config": vision}
    with pytest.raises(InputError, match="do not fit together"):
        read_config(shapes_of(tiny_config()), config, None)


@pytest.mark.parametrize(
    "name",
    [
        "llama.embed_tokens.weight",
        "llama.layers.0.mlp.gate_proj.weight",
        "llama.layers.0.self_attn.k_proj.weight",
        "vq.encoder.conv_in.weight",
        "vq.encoder.conv_blocks.0.res.0.conv2.weight",
        "vq.quantize.embedding.weight",
        "vq.quant_conv.weight",
    ],
)
@pytest.mark.parametrize("shape", [None, (), (7,), (3, 3, 3)], ids=str)
def test_a_tensor_that_sizes_are_read_from_is_missed_or_misshapen(name, shape):
    shapes = shapes_of(tiny_config())
    del shapes[name]
    if shape is not None:
        shapes[name] = shape
    try:
        read = read_config(shapes, {"language_config": HEADS}, None)
    except InputError:
        return
    assert shapes_of(read) != shapes  # left to the comparison of all shapes


@pytest.mark.parametrize(
    "name",
    [
        "llama.layers.100000000.mlp.up_proj.weight",
        "vq.encoder.conv_blocks.100000000.res.0.conv2.weight",
        "vq.encoder.conv_blocks.0.res.100000000.conv2.weight",
    ],
)
def test_a_number_in_a_name_does_not_make_a_model_of_that_many_layers(name):
    shapes = shapes_of(tiny_config()) | {name: (1, 1)}
    with pytest.raises(InputError):
        read_config(shapes, {"language_config": HEADS}, None)


@pytest.mark.skipif(not REAL_KEYS.is_file(), reason=f"there is no {REAL_KEYS}")
@pytest.mark.parametrize(
    ("which", "hidden", "layers", "mlp"),
    [("janus_pro_1b", 2048, 24, 5632), ("janus_pro_7b", 4096, 30, 11008)],
)
def test_the_real_models_are_known_by_their_tensors_alone(which, hidden, layers, mlp):
    keys = json.loads(REAL_KEYS.read_text())
    real = {name: tuple(shape) for name, shape in keys[which].items()}
    blender = {n for n in keys["faid_1b_num_blender2_hops12_additional"] if BLENDER.search(n)}
    assert len(blender) == len(keys["faid_1b_num_blender2_hops12_additional"])
    shapes = {ours: real[name] for name, ours in our_names([*real, *blender]).items()}
    config = read_config(shapes, {}, None)
    llama = config.llama
    assert (llama.hidden_size, llama.num_layers, llama.intermediate_size) == (hidden, layers, mlp)
    assert (llama.num_heads, llama.num_kv_heads) == (hidden // 128, hidden // 128)
    assert config.vq == VQConfig()
    assert config.grid == Grid(24, 24)
    assert shapes_of(config) == shapes


def test_describing_a_config_tells_the_heads_that_tensors_cannot():
    model = tiny_model(0, tiny_config(heads=2, kv_heads=1))
    described = describe_config(model.config)["language_config"]
    assert (described["num_attention_heads"], described["num_key_value_heads"]) == (2, 1)


LONG = "9" * 5000
"""Python reads no number of so many digits."""


@pytest.mark.parametrize(
    "name",
    [
        f"model.generation_aligner.hidden_layers.{LONG}.weight",
        f"model.language_model.layers.{LONG}.input_layernorm.weight",
        f"gen_aligner.layers.{LONG}.weight",
    ],
    ids=["aligner of transformers", "layer", "aligner"],
)
def test_a_layer_with_an_endless_number_is_refused(name):
    names = ["model.language_model.embed_tokens.weight", "model.language_model.layers.0.x", name]
    with pytest.raises(InputError):
        read_config(dict.fromkeys(our_names(names).values(), (1, 1)), {}, None)


def test_a_blender_with_an_endless_number_belongs_to_no_layer():
    """Its tensors are then some that no model has."""
    name = f"language_model.model.layers.{LONG}.blender.conv1.weight"
    ours = blender_names([name])[name]
    assert read_blenders({ours: (1,)}) == AdapterConfig((), (1,))
