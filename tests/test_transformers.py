"""Parity with `transformers`: same weights, same logits, same tokens, same pixels."""

from dataclasses import replace

import pytest
import torch

from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.models.janus.model import JanusConfig
from arrag_engine.models.janus.prompt import unconditional
from arrag_engine.models.janus.vq import VQConfig
from arrag_engine.settings import Sampling
from arrag_engine.shipped import MODELS
from tests.tiny import PAD_ID, PROMPT, official_tensors, tiny_config, tiny_model, transformers_name

transformers = pytest.importorskip("transformers")

POCKET = MODELS / "pocket.safetensors"


def described(config: JanusConfig):
    """A transformers config of the same sizes, with a tiny understanding branch."""
    llama, vq, side = config.llama, config.vq, config.grid.width
    hidden = llama.hidden_size
    return transformers.JanusConfig(
        text_config={
            "vocab_size": llama.vocab_size,
            "hidden_size": hidden,
            "intermediate_size": llama.intermediate_size,
            "num_hidden_layers": llama.num_layers,
            "num_attention_heads": llama.num_heads,
            "num_key_value_heads": llama.num_kv_heads,
            "rope_theta": llama.rope_theta,
            "rms_norm_eps": llama.rms_norm_eps,
            "max_position_embeddings": llama.max_positions,
        },
        vision_config={
            "hidden_size": 16,
            "projection_dim": hidden,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": side * vq.patch_size,
            "patch_size": vq.patch_size,
            "num_image_tokens": config.grid.size,
        },
        vq_config={
            "embed_dim": vq.codebook_dim,
            "num_embeddings": vq.codebook_size,
            "latent_channels": vq.z_channels,
            "base_channels": vq.base_channels,
            "channel_multiplier": list(vq.channel_multiplier),
            "num_res_blocks": vq.num_res_blocks,
            "projection_dim": hidden,
            "image_token_embed_dim": hidden,
        },
        image_token_id=3,
    )


def counterpart(model):
    """The transformers model with the same drawing weights."""
    with torch.inference_mode(False):
        theirs = transformers.JanusForConditionalGeneration(described(model.config)).eval()
    tensors = {transformers_name(n): t for n, t in official_tensors(model).items()}
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert unexpected == []
    used = ("model.language_model", "model.gen", "model.vqmodel")
    assert [name for name in missing if name.startswith(used)] == []
    return theirs


def their_tokens(theirs, prompt, pad_id, cfg):
    """Greedy picture tokens through transformers' own `generate`."""
    ends = {"bos_token_id": prompt[0], "pad_token_id": pad_id}
    config = transformers.GenerationConfig(
        do_sample=False, guidance_scale=cfg, generation_kwargs={"boi_token_id": prompt[-1]}, **ends
    )
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    return theirs.generate(
        ids, attention_mask=mask, generation_config=config, generation_mode="image"
    )[0].tolist()


def our_tokens(model, prompt, pad_id, cfg, window=1):
    sampling = Sampling(cfg=cfg, temperature=0)
    drawing = draw_pictures(
        model, Recipe(prompt, unconditional(prompt, pad_id), sampling), [0], window
    )
    return drawing.tokens.flatten().tolist()


CONFIGS = {
    "even heads": tiny_config(),
    "grouped heads": tiny_config(kv_heads=2),
    "one key head": tiny_config(side=4, kv_heads=1),
    "three levels": replace(tiny_config(side=3), vq=VQConfig(32, (1, 2, 2), 2, 64, 50, 8)),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS, scope="module")
def pair(request):
    model = tiny_model(5, request.param)
    return model, counterpart(model)


def test_logits_along_a_forced_path_are_equal(pair):
    ours, theirs = pair
    ids, codes = torch.tensor([PROMPT, [1, 2, 2, 2, 4]]), torch.randint(0, 50, (2, 9))
    x = torch.cat((ours.embed_text(ids), ours.embed_codes(codes)), dim=1)
    embedded = torch.cat(
        (
            theirs.get_input_embeddings()(ids),
            theirs.prepare_embeddings_for_image_generation(codes),
        ),
        dim=1,
    )
    torch.testing.assert_close(x, embedded, atol=1e-5, rtol=1e-5)
    hidden = theirs.model.language_model(inputs_embeds=embedded).last_hidden_state
    wanted = theirs.model.generation_head(hidden)
    torch.testing.assert_close(ours.logits(x), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [1, 4])
def test_greedy_pictures_are_equal(pair, window):
    ours, theirs = pair
    found = our_tokens(ours, PROMPT, PAD_ID, 3.0, window)
    assert len(set(found)) > 3
    assert found == their_tokens(theirs, PROMPT, PAD_ID, 3.0)


def test_decoded_pixels_are_equal(pair):
    ours, theirs = pair
    side = ours.config.grid.width
    codes = torch.randint(0, 50, (2, side * side))
    wanted = theirs.decode_image_tokens(codes).permute(0, 3, 1, 2)
    found = ours.vq.decode(codes.view(2, side, side))
    assert found.std() > 0.1
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_vectors_before_quantising_are_equal_also_off_the_square(pair):
    ours, theirs = pair
    patch = ours.config.vq.patch_size
    images = torch.rand(2, 3, 3 * patch, 5 * patch) * 2 - 1
    vq = theirs.model.vqmodel
    wanted = torch.nn.functional.normalize(vq.quant_conv(vq.encoder(images)), dim=1)
    found = ours.vq.encode(images)[1]
    torch.testing.assert_close(found, wanted.permute(0, 2, 3, 1), atol=2e-5, rtol=1e-4)


def test_a_folder_that_transformers_saved_loads_and_draws_the_same(pair, tmp_path):
    ours, theirs = pair
    theirs.save_pretrained(tmp_path)
    loaded = load_checkpoint(tmp_path, torch.float32)
    assert loaded.model.config == ours.config
    wanted = their_tokens(theirs, PROMPT, PAD_ID, 3.0)
    assert our_tokens(loaded.model, PROMPT, PAD_ID, 3.0) == wanted


def test_shards_that_transformers_saved_load(tmp_path):
    ours = tiny_model()
    counterpart(ours).save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = load_checkpoint(tmp_path, torch.float32).model.state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in ours.state_dict().items())


@pytest.mark.skipif(not POCKET.is_file(), reason="the pocket model is not there")
def test_the_shipped_model_draws_the_same_in_transformers():
    checkpoint = load_checkpoint(POCKET, torch.float32)
    model = checkpoint.model
    prompt = checkpoint.prompt_encoder.encode("two red apples")
    theirs = counterpart(model)
    found = our_tokens(model, prompt.ids, checkpoint.prompt_encoder.pad_id, 3.0, window=16)
    assert found == their_tokens(theirs, prompt.ids, checkpoint.prompt_encoder.pad_id, 3.0)
    side = model.config.grid.width
    for vq in (model.vq, theirs.model.vqmodel):
        vq.double()  # a trained decoder is loud: in float32 rounding alone shows
    wanted = theirs.decode_image_tokens(torch.tensor([found])).permute(0, 3, 1, 2)
    decoded = model.vq.decode(torch.tensor(found).view(1, side, side))
    torch.testing.assert_close(decoded, wanted, atol=1e-6, rtol=1e-6)
