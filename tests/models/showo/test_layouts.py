"""Names and sizes of Show-o's checkpoints."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arrag_engine.checkpoints import check_shapes
from arrag_engine.errors import InputError
from arrag_engine.grid import Grid
from arrag_engine.models.showo.layouts import (
    is_picture_tokenizer,
    is_show_o,
    official_name,
    our_names,
    picture_rows,
    read_config,
)
from arrag_engine.models.showo.model import ShowO, ShowOConfig
from arrag_engine.models.showo.phi import PhiConfig
from arrag_engine.models.showo.vq import VQConfig
from tests.tiny_showo import config_json, crooked_showo_config, tiny_showo, tiny_showo_config

REAL_KEYS = Path(__file__).parents[4] / "shared" / "oracle-showo" / "real_checkpoint_keys.json"


def shapes_of(config: ShowOConfig):
    """Shapes in a file, by the engine's names: the head has rows for the whole vocabulary."""
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in ShowO(config).state_dict().items()}
    for name in ("head.weight", "head.bias"):
        shapes[name] = (config.phi.vocab_size, *shapes[name][1:])
    return shapes


SIZES = {
    "tiny": tiny_showo_config(),
    "grouped": tiny_showo_config(kv_heads=2),
    "rotary": tiny_showo_config(rotary_dim=6, rope_theta=500.0, norm_eps=1e-6),
    "crooked": crooked_showo_config(),
    "one level": replace(tiny_showo_config(), vq=VQConfig(32, (32,), (3,), (64,), (1,), 6)),
}


@pytest.mark.parametrize("config", SIZES.values(), ids=SIZES)
def test_sizes_are_read_from_tensors_and_the_config(config):
    shapes = shapes_of(config)
    assert read_config(shapes, config_json(config), None) == config
    rows, cut = picture_rows(config, shapes)
    check_shapes(ShowO, (config,), cut, Path("a"), "Show-o", official_name)
    first = config.vocabulary.first_code
    assert rows["head.bias"] == slice(first, first + config.vq.codebook_size)


def test_official_names_lead_to_the_engines_and_back():
    ours = list(tiny_showo().state_dict())
    official = [official_name(name) for name in ours]
    assert list(our_names(official).values()) == ours
    assert "showo.lm_head.weight" in official
    assert "magvitv2.decoder.post_quant_conv.bias" in official
    unused = ["mm_projector.0.weight", "magvitv2.quantize.embedding"]
    assert list(our_names([*official, *unused])) == official


@pytest.mark.skipif(not REAL_KEYS.is_file(), reason=f"there is no {REAL_KEYS}")
@pytest.mark.parametrize(("tokens", "side"), [(256, 16), (1024, 32)])
@pytest.mark.parametrize("clip", [False, True])
def test_the_real_models_are_known_by_their_tensors(tokens, side, clip):
    keys = json.loads(REAL_KEYS.read_text())

    def shapes(*names):
        return {n: tuple(shape) for name in names for n, (shape, _) in keys[name].items()}

    decoder = shapes("showo", *(["showo_w_clip_vit_additional"] if clip else []))
    vq = shapes("magvitv2")
    assert (len(decoder) - 4 * clip, len(vq)) == (437, 382)
    assert is_show_o(list(decoder))
    assert is_picture_tokenizer(list(vq))
    file = decoder | {f"magvitv2.{name}": shape for name, shape in vq.items()}
    found = {ours: file[name] for name, ours in our_names(list(file)).items()}
    config = read_config(found, keys["showo_config"] | {"num_vq_tokens": tokens}, None)
    phi = PhiConfig(58498, 2048, 8192, 24, 32, 32, 64, 32)
    assert config == ShowOConfig(phi, VQConfig(), Grid(side, side))
    _, cut = picture_rows(config, found)
    check_shapes(ShowO, (config,), cut, Path("a"), "Show-o", official_name)
    assert config.length == {16: 387, 32: 1155}[side]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"num_vq_tokens": None}, "num_vq_tokens is None in the checkpoint's config"),
        ({"num_vq_tokens": 35}, "num_vq_tokens is 35"),
        ({"num_vq_tokens": True}, "num_vq_tokens is True"),
        ({"num_vq_tokens": 256 * 256 * 4}, "a grid of 512x512"),
        ({"num_vq_tokens": 225}, "256 positions for 237 ids|do not fit together"),
        ({"codebook_size": 8192}, "has 64 codes, the decoder's config says 8192; put the magvitv2"),
        ({"llm_vocab_size": 50295}, "the config says .*50295"),
        ({"mask_token_id": 3}, "the config says"),
        ({"vocab_size": 3}, "the config says"),
        ({"max_text_len": 2}, "a text part of 2"),
        ({"max_text_len": "long"}, "do not fit together"),
        ({"llm_config": {"partial_rotary_factor": 0.1}}, "0 rotary numbers of 8"),
        ({"llm_config": {"partial_rotary_factor": 7}}, "rotary share 7"),
        ({"llm_config": {"hidden_act": "relu"}}, "'relu'.* is not supported"),
        ({"llm_config": {"rope_scaling": {"type": "linear"}}}, "is not supported"),
        ({"llm_config": {"rope_theta": -3}}, "rope_theta -3"),
        ({"llm_config": {"layer_norm_eps": 3}}, "layer_norm_eps 3"),
        ({"llm_config": {"max_position_embeddings": 40}}, "40 positions for 48 ids"),
        ({"llm_config": {"max_position_embeddings": 1e400}}, "do not fit together"),
    ],
    ids=str,
)
def test_a_config_that_contradicts_the_tensors_is_refused(told, message):
    config = tiny_showo_config()
    if told == {"num_vq_tokens": 225}:
        config = tiny_showo_config(max_positions=236)
    with pytest.raises(InputError, match=message):
        read_config(shapes_of(config), config_json(config) | told, None)


def test_another_grid_than_the_weights_were_trained_for_is_refused():
    """Weights of 256 and 512 px have the same shapes."""
    config = tiny_showo_config()
    assert read_config(shapes_of(config), config_json(config), Grid(6, 6)) == config
    with pytest.raises(InputError, match="draws a 6x6 grid, not 12x12; use the weights"):
        read_config(shapes_of(config), config_json(config), Grid(12, 12))


@pytest.mark.parametrize(
    "name",
    [
        "phi.embed_tokens.weight",
        "phi.layers.0.mlp.fc1.weight",
        "phi.layers.0.self_attn.q_layernorm.weight",
        "phi.layers.0.self_attn.q_proj.weight",
        "phi.layers.0.self_attn.k_proj.weight",
        "vq.encoder.conv_in.weight",
        "vq.encoder.quant_conv.weight",
        "vq.encoder.down.0.block.0.conv2.weight",
        "vq.decoder.up.1.block.0.conv2.weight",
    ],
)
@pytest.mark.parametrize("shape", [None, (), (7,), (3, 3, 3), (0, 0)], ids=str)
def test_a_tensor_that_sizes_are_read_from_is_missed_or_misshapen(name, shape):
    config = tiny_showo_config()
    shapes = shapes_of(config)
    del shapes[name]
    if shape is not None:
        shapes[name] = shape
    try:
        found = read_config(shapes, config_json(config), None)
    except InputError:
        return
    assert shapes_of(found) != shapes  # left to the comparison of all shapes


@pytest.mark.parametrize(
    "name",
    [
        "phi.layers.100000000.mlp.fc1.weight",
        f"phi.layers.{'9' * 5000}.mlp.fc1.weight",
        "vq.encoder.down.100000000.block.0.conv2.weight",
        "vq.decoder.up.0.block.100000000.conv2.weight",
    ],
    ids=["layer", "endless", "level", "block"],
)
def test_a_number_in_a_name_does_not_make_a_model_of_that_many_layers(name):
    config = tiny_showo_config()
    with pytest.raises(InputError):
        read_config(shapes_of(config) | {name: (1, 1)}, config_json(config), None)


def test_a_head_for_another_vocabulary_is_refused():
    config = tiny_showo_config()
    shapes = shapes_of(config) | {"head.bias": (64,)}
    with pytest.raises(InputError, match=r"showo.lm_head.bias has shape \[64\] for 87 ids"):
        picture_rows(config, shapes)
