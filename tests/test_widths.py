"""A model whose every width differs from every other, in all four layouts: sizes are read."""

import json

import pytest
import torch
import torch.nn.functional as F

from arrag_engine.checkpoints import convert_checkpoint, describe_config, load_checkpoint
from arrag_engine.checkpoints.merge import merge_adapter
from arrag_engine.cli import main
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.errors import InputError
from arrag_engine.faid import AdapterConfig
from arrag_engine.settings import Sampling
from tests.folders import UNDERSTANDING, VISION, as_safetensors, deepseek_folder
from tests.tiny import (
    BLANK,
    PROMPT,
    blender_tensors,
    crooked_config,
    official_tensors,
    tiny_model,
    transformers_name,
    write_adapter,
    write_tiny,
)

HIDDEN = 36
BLENDERS = blender_tensors(HIDDEN, (0, 2))


@pytest.fixture(scope="module")
def crooked():
    """24x24, the grid that a deepseek folder has without saying so."""
    return tiny_model(3, crooked_config(side=24))


@pytest.fixture(scope="module")
def small():
    return tiny_model(3, crooked_config())


def test_no_two_widths_are_equal(crooked):
    llama, vq, config = crooked.config.llama, crooked.config.vq, crooked.config
    widths = [
        *(llama.vocab_size, llama.hidden_size, llama.intermediate_size),
        *(llama.query_size, llama.kv_size, llama.head_dim, config.head_width),
        *config.aligner_widths[:-1],
        *(vq.base_channels, *vq.encoder_widths, *vq.decoder_widths),
        *(vq.z_channels, vq.decoder_z_channels, vq.codebook_size, vq.codebook_dim),
    ]
    assert len(set(widths)) == len(widths)
    assert config.aligner_widths[-1] == llama.hidden_size


def as_deepseek(folder, model):
    return deepseek_folder(folder, model)


def as_transformers(folder, model):
    config = {"text_config": describe_config(model.config)["language_config"], **VISION}
    config["vision_config"] = {"image_size": 2 * model.config.grid.width, "patch_size": 2}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {transformers_name(n): t for n, t in official_tensors(model).items()}
    as_safetensors(folder, tensors)
    return folder


def as_released_faid(folder, model):
    return deepseek_folder(folder, model, more=UNDERSTANDING | BLENDERS)


def as_single_file(folder, model):
    return write_tiny(folder / "model.safetensors", model)


LAYOUTS = [as_deepseek, as_transformers, as_released_faid, as_single_file]


@pytest.mark.parametrize("write", LAYOUTS)
def test_every_layout_loads_it(tmp_path, crooked, write):
    checkpoint = load_checkpoint(write(tmp_path, crooked), torch.float32)
    assert checkpoint.model.config == crooked.config
    found, wanted = checkpoint.model.state_dict(), crooked.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert (checkpoint.faid is not None) == (write is as_released_faid)


def test_it_converts_and_draws_the_same(tmp_path, small):
    source = as_single_file(tmp_path, small)
    convert_checkpoint(source, tmp_path / "again.safetensors")
    again = load_checkpoint(tmp_path / "again.safetensors", torch.float32).model
    pictures = [
        draw_pictures(m, Recipe(PROMPT, BLANK, Sampling(cfg=2)), [5], w).tokens
        for m in (small, again)
        for w in (1, 4)
    ]
    assert len(pictures[0].unique()) > 3
    assert all(torch.equal(pictures[0], other) for other in pictures)


def test_aligner_and_head_are_linear_layers_with_a_gelu_between(small):
    tensors = small.state_dict()

    def linear(name, x):
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    codes = torch.arange(7)
    x = linear("gen_aligner.layers.0", tensors["gen_embed.weight"][codes])
    x = linear("gen_aligner.layers.2", F.gelu(x))
    x = linear("gen_aligner.layers.4", F.gelu(x))
    torch.testing.assert_close(small.embed_codes(codes), x)
    logits = linear("gen_head.vision_head", F.gelu(linear("gen_head.output_mlp_projector", x)))
    torch.testing.assert_close(small.predict(x), logits)


def test_its_vq_reads_and_draws_pictures(small):
    codes, vectors = small.vq.encode(torch.rand(2, 3, 12, 12) * 2 - 1)
    assert codes.shape == (2, 6, 6)
    assert vectors.shape == (2, 6, 6, 10)
    assert small.vq.decode(codes).shape == (2, 3, 12, 12)


def test_an_adapter_fits_it_and_merges(tmp_path, small):
    base = as_single_file(tmp_path, small)
    config = AdapterConfig((0,), (1, 2), rank=4, alpha=8.0, head=True)
    adapter = write_adapter(tmp_path / "adapter.safetensors", base, config)
    out = tmp_path / "merged.safetensors"
    merge_adapter(base, adapter, out)
    assert load_checkpoint(out, torch.float32).model.config == small.config
    command = f"generate --model {base} --adapter {adapter} --prompt car --dtype fp32 --device cpu"
    assert main([*command.split(), "--out", str(tmp_path / "picture.png")]) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gen_vision_model.decoder.conv_blocks.1", "2 levels of the VQ's encoder, 1 of its"),
        ("gen_aligner.layers.2", r"the aligner has the layers \[0, 4\]"),
    ],
)
def test_halves_that_do_not_belong_together_are_refused(tmp_path, small, name, message):
    source = as_single_file(tmp_path, small)
    tensors = {n: t for n, t in official_tensors(small).items() if not n.startswith(name)}
    folder = tmp_path / "folder"
    folder.mkdir()
    deepseek_folder(folder, small)
    as_safetensors(folder, tensors)
    assert source.is_file()
    with pytest.raises(InputError, match=message):
        load_checkpoint(folder, torch.float32)
