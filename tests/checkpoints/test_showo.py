"""Show-o's checkpoints: as downloaded, as one file, and what is wrong with them."""

import json
import random
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from arrag_engine.checkpoints import (
    convert_checkpoint,
    load_checkpoint,
    open_checkpoint,
)
from arrag_engine.checkpoints.adapter import load_adapter
from arrag_engine.checkpoints.weights import Weights
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.errors import InputError
from arrag_engine.grid import Grid
from arrag_engine.settings import Sampling, Schedule
from tests.tiny import write_adapter
from tests.tiny_showo import (
    crooked_showo_config,
    showo_folder,
    text_tokenizer,
    tiny_showo,
    tiny_showo_config,
)

FP32 = torch.float32


@pytest.fixture(scope="module")
def showo():
    return tiny_showo()


@pytest.fixture
def folder(tmp_path, showo):
    return showo_folder(tmp_path / "show-o", showo)


def assert_same_weights(model, wanted):
    found, wanted = model.state_dict(), wanted.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("crooked", [False, True])
def test_a_folder_as_downloaded_loads(tmp_path, suffix, crooked):
    model = tiny_showo(0, crooked_showo_config() if crooked else None)
    checkpoint = load_checkpoint(showo_folder(tmp_path / "show-o", model, suffix), FP32)
    assert checkpoint.model.config == model.config
    assert_same_weights(checkpoint.model, model)
    assert checkpoint.name == "show-o"
    assert checkpoint.sampling == Sampling(cfg=2.75)
    assert len(checkpoint.prompt_encoder.encode("a red car").ids) == 6


def test_the_weights_of_a_folder_can_be_named_themselves(folder, showo):
    assert_same_weights(load_checkpoint(folder / "pytorch_model.safetensors", FP32).model, showo)


def test_the_understanding_branch_is_left_out(tmp_path, showo, monkeypatch):
    more = {
        f"mm_projector.{i}.{kind}": torch.zeros(3) for i in (0, 2) for kind in ("weight", "bias")
    }
    folder = showo_folder(tmp_path / "clip", showo, **more)
    read, real = [], Weights.read

    def counting(weights, name, *how, **more):
        read.append(name)
        return real(weights, name, *how, **more)

    monkeypatch.setattr(Weights, "read", counting)
    assert_same_weights(load_checkpoint(folder, FP32).model, showo)
    assert not [name for name in read if "mm_projector" in name or "quantize" in name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_decoder_has_the_dtype_asked_for_and_the_vq_always_float32(folder, dtype):
    model = load_checkpoint(folder, dtype).model
    assert model.dtype == dtype
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == (FP32 if name.startswith("vq.") else dtype)


@pytest.mark.parametrize("storage", [torch.int8, torch.float8_e4m3fn])
def test_weights_of_8_bits_draw(folder, showo, storage):
    model = load_checkpoint(folder, FP32, storage=storage).model
    assert model.head.weight.dtype == storage
    opened, exact = (m.open(torch.tensor([[17, 1, 3, 1]])) for m in (model, showo))
    tokens = torch.zeros(1, 36, dtype=torch.long)
    known = torch.arange(36)[None] < 9
    found, wanted = (
        model.masked_logits(opened, tokens, known),
        showo.masked_logits(exact, tokens, known),
    )
    assert torch.corrcoef(torch.stack((found.flatten(), wanted.flatten())))[0, 1] > 0.98


def test_one_file_holds_it_all(tmp_path, folder, showo):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    wanted = load_checkpoint(folder, FP32)
    decoder = load_file(folder / "pytorch_model.safetensors")
    convert_checkpoint(folder, one)
    shutil.rmtree(folder)
    convert_checkpoint(one, two)
    for path in (one, two):
        checkpoint = load_checkpoint(path, FP32)
        assert checkpoint.model.config == showo.config
        assert_same_weights(checkpoint.model, showo)
        assert checkpoint.fingerprint == wanted.fingerprint
        assert checkpoint.prompt_encoder.encode("red").ids == [17, 1, 3, 1]
        stored = load_file(path)
        assert all(torch.equal(stored[name], tensor) for name, tensor in decoder.items())
        assert "magvitv2.encoder.quant_conv.weight" in stored


def test_another_weight_is_another_fingerprint_and_another_precision_is_not(tmp_path, showo):
    wanted = load_checkpoint(showo_folder(tmp_path / "a", showo), FP32).fingerprint
    assert load_checkpoint(tmp_path / "a", torch.float16).fingerprint == wanted
    other = load_checkpoint(showo_folder(tmp_path / "b", tiny_showo(1)), FP32)
    assert other.fingerprint != wanted


def test_a_loaded_model_draws_what_the_model_draws(folder, showo):
    checkpoint = load_checkpoint(folder, FP32)
    prompt = checkpoint.prompt_encoder.encode("a red car")
    recipe = Recipe(prompt.ids, prompt.unconditional, Sampling(cfg=3.0), schedule=Schedule(4))
    drawn = [draw_pictures(m, recipe, [7]).tokens for m in (checkpoint.model, showo)]
    assert torch.equal(*drawn)


def refusal(path):
    with pytest.raises(InputError) as caught:
        load_checkpoint(path, FP32)
    return str(caught.value)


def test_a_missing_picture_tokenizer_is_named_with_its_place(folder):
    shutil.rmtree(folder / "magvitv2")
    assert refusal(folder) == (
        f"magvitv2 missing: put the files of showlab/magvitv2 into {folder / 'magvitv2'}"
    )
    (folder / "magvitv2").mkdir()
    assert f"{folder / 'magvitv2'} has no model*.safetensors" in refusal(folder)


def test_other_weights_in_the_place_of_the_picture_tokenizer_are_refused(folder):
    shutil.copy(folder / "pytorch_model.safetensors", folder / "magvitv2")
    assert "magvitv2 does not hold the picture tokenizer of Show-o" in refusal(folder)


def test_the_picture_tokenizer_alone_is_no_model(folder):
    message = refusal(folder / "magvitv2")
    assert "is the picture tokenizer of Show-o alone; choose the model folder" in message


def test_a_picture_tokenizer_of_other_codes_is_refused(tmp_path, folder):
    other = replace(tiny_showo_config(), vq=replace(tiny_showo_config().vq, bits=5))
    showo_folder(tmp_path / "other", tiny_showo(0, other))
    shutil.rmtree(folder / "magvitv2")
    shutil.copytree(tmp_path / "other" / "magvitv2", folder / "magvitv2")
    assert "has 32 codes, the decoder's config says 64; put the magvitv2 that" in refusal(folder)


def test_a_missing_tokenizer_says_whose_file_belongs_where(tmp_path, folder):
    (folder / "tokenizer.json").unlink()
    checkpoint = load_checkpoint(folder, FP32)
    wanted = rf"tokenizer\.json is missing; put the .* of microsoft/phi-1_5 into {folder}$"
    with pytest.raises(InputError, match=wanted):
        _ = checkpoint.prompt_encoder
    with pytest.raises(InputError, match=wanted):
        convert_checkpoint(folder, tmp_path / "one.safetensors")
    assert not (tmp_path / "one.safetensors").exists()


def test_a_missing_config_is_named(folder):
    (folder / "config.json").unlink()
    assert refusal(folder).startswith("config.json missing: put the model's config.json into")


def test_another_grid_is_refused(folder):
    with pytest.raises(InputError, match="draws a 6x6 grid, not 12x12"):
        open_checkpoint(folder, Grid(12, 12))


def test_a_header_of_another_grid_is_refused(tmp_path, folder):
    path = tmp_path / "one.safetensors"
    convert_checkpoint(folder, path)
    data = path.read_bytes()
    assert data.count(b'"grid":"6x6"') == 1
    path.write_bytes(data.replace(b'"grid":"6x6"', b'"grid":"8x8"'))
    assert "draws a 6x6 grid, not 8x8" in refusal(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"showo.model.layers.1.mlp.fc1.weight": None},
            "lacks 1 tensors, the first is showo.model",
        ),
        ({"showo.lm_head.weight": None}, "lacks 1 tensors, the first is showo.lm_head.weight"),
        ({"showo.model.x.weight": torch.zeros(3)}, "1 tensors that no Show-o has"),
        ({"showo.model.layers.0.mlp.fc2.bias": torch.zeros(3)}, r"shape \[3\], expected \[32\]"),
        ({"showo.lm_head.bias": torch.zeros(3)}, r"lm_head.bias has shape \[3\] for 87 ids"),
        ({"showo.lm_head.weight": torch.zeros(87, 5)}, r"shape \[64, 5\], expected \[64, 32\]"),
        ({"showo.model.embed_tokens.weight": torch.zeros(80, 32)}, "the config says"),
        (
            {"showo.model.final_layernorm.bias": torch.zeros(32).int()},
            "is torch.int32; only float32",
        ),
    ],
    ids=str,
)
def test_weights_that_are_not_whole_are_refused(folder, change, message):
    path = folder / "pytorch_model.safetensors"
    tensors = load_file(path)
    for name, tensor in change.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, path)
    with pytest.raises(InputError, match=message):
        load_checkpoint(folder, FP32)


def test_a_damaged_file_is_refused_or_loads_whole(tmp_path, folder, pytestconfig):
    path = tmp_path / "one.safetensors"
    convert_checkpoint(folder, path)
    data, refused = path.read_bytes(), 0
    end = 8 + int.from_bytes(data[:8], "little")
    for seed in range(pytestconfig.getoption("mutations") // 4):
        rng, damaged = random.Random(seed), bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(end)] = rng.randrange(256)
        keep = len(data) if rng.random() < 0.8 else rng.randrange(len(data))
        path.write_bytes(damaged[:keep])
        try:
            load_checkpoint(path, FP32)
        except InputError:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"mutation {seed} ends in {error!r}") from error
    assert refused > 0


def test_what_only_a_janus_pro_has_is_refused(tmp_path, folder, model_file):
    checkpoint = load_checkpoint(folder, FP32)
    with pytest.raises(
        InputError, match="show-o is a Show-o model, for which there is no calibration"
    ):
        _ = checkpoint.janus
    adapter = write_adapter(tmp_path / "adapter.safetensors", model_file)
    with pytest.raises(InputError, match="draws in raster order, the model 'show-o' draws in any"):
        load_adapter(adapter, checkpoint, FP32)
    with pytest.raises(InputError, match="is a Show-o model; choose a Janus-Pro model"):
        _ = open_checkpoint(folder).janus


def test_json_of_the_wrong_kind_is_refused(folder):
    (folder / "config.json").write_text(json.dumps([1]))
    assert "does not hold a JSON object" in refusal(folder)


def test_the_tokenizer_of_a_folder_may_be_any_file_with_its_words(folder):
    (folder / "tokenizer.json").write_text("\ufeff" + text_tokenizer(), encoding="utf-8")
    assert load_checkpoint(folder, FP32).prompt_encoder.encode("red").ids[2] == 3
