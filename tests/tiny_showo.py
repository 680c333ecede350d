"""Tiny seeded Show-o models for tests."""

from __future__ import annotations

import json

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from arrag_engine.grid import Grid
from arrag_engine.index import KeySpec, PatchIndex, create_index
from arrag_engine.models.showo.layouts import official_name
from arrag_engine.models.showo.model import SPECIAL, ShowO, ShowOConfig
from arrag_engine.models.showo.phi import PhiConfig
from arrag_engine.models.showo.prompt import END_OF_TEXT
from arrag_engine.models.showo.vq import VQConfig, code_vectors
from arrag_engine.models.tokenizing import UNKNOWN
from tests.tiny import tiny_source

AROUND = KeySpec("ring-8", "zero", "codebook")
WORDS = ["a", "red", "car", "two", "apples", "on", "grass", "blue"]
TEXT = 12
"""Text ids, some of which no word has."""
END = 1
VQ = VQConfig(32, (32, 64), (1, 2), (32, 64), (2, 1), 6)
VOCAB = TEXT + len(SPECIAL) + VQ.codebook_size + 1


def tiny_showo_config(side: int = 6, kv_heads: int = 4, **phi) -> ShowOConfig:
    sizes = {"head_dim": 8, "rotary_dim": 4, "max_positions": 256} | phi
    return ShowOConfig(PhiConfig(VOCAB, 32, 48, 2, 4, kv_heads, **sizes), VQ, Grid(side, side), 9)


def crooked_showo_config() -> ShowOConfig:
    """Sizes of which no two are equal: nothing fits by accident."""
    vq = VQConfig(64, (32, 96, 64), (1, 3, 2), (64, 32, 96), (2, 1, 3), 5)
    phi = PhiConfig(TEXT + 10 + 32 + 1, 36, 50, 3, 4, 2, 14, 6, 50.0, 1e-3, 200)
    return ShowOConfig(phi, vq, Grid(5, 5), 7)


def tiny_showo(seed: int = 0, config: ShowOConfig | None = None) -> ShowO:
    """A model whose weights are all random, norms and biases too: nothing is an identity."""
    torch.manual_seed(seed)
    model = ShowO(config or tiny_showo_config()).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        scale = 1.0 if "embed" in name else 0.3
        mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.normal_(mean, scale)
    return model


def sign_index(
    images: int = 6,
    config: ShowOConfig | None = None,
    spec: KeySpec = AROUND,
    structure: str = "bits",
    seed: int = 0,
) -> PatchIndex:
    """An index of random token grids of a Show-o, whose code vectors are signs."""
    config, rng = config or tiny_showo_config(), np.random.default_rng(seed)
    shape = (images, config.grid.size)
    tokens = rng.integers(0, config.vq.codebook_size, shape).astype(np.uint16)
    codes = torch.arange(config.vq.codebook_size)
    rows = code_vectors(codes, config.vq.bits).numpy()
    sources = [tiny_source(i, seed) for i in range(images)]
    return create_index(config.grid, tokens, None, rows, sources, spec, structure)


def text_tokenizer() -> str:
    """A word-level tokenizer as JSON, without the special tokens of Show-o, as that of Phi-1.5."""
    vocab = {token: i for i, token in enumerate([UNKNOWN, END_OF_TEXT, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    return tokenizer.to_str()


def official_showo(model: ShowO) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of the decoder and of the picture tokenizer by their official names, with those
    that drawing does not need."""
    c, generator = model.config, torch.Generator().manual_seed(5)
    decoder, vq = {}, {}
    for ours, tensor in model.state_dict().items():
        name = official_name(ours)
        if name.startswith("magvitv2."):
            vq[name.removeprefix("magvitv2.")] = tensor
        elif ours.startswith("head."):  # the file has rows for text too
            whole = torch.randn((c.phi.vocab_size, *tensor.shape[1:]), generator=generator)
            first = c.vocabulary.first_code
            whole[first : first + len(tensor)] = tensor
            decoder[name] = whole
        else:
            decoder[name] = tensor
    vq["quantize.embedding"] = torch.from_numpy(model.vq.codebook(torch.device("cpu")))
    vq["quantize.power_vals"] = 2 ** torch.arange(c.vq.bits - 1, -1, -1)
    return decoder, vq


def config_json(config: ShowOConfig) -> dict:
    """What a downloaded config.json says, with what tests have otherwise than Phi-1.5."""
    phi, vocabulary = config.phi, config.vocabulary
    return {
        "_class_name": "Showo",
        "codebook_size": config.vq.codebook_size,
        "llm_model_path": "microsoft/phi-1_5",
        "llm_vocab_size": vocabulary.text,
        "mask_token_id": vocabulary.mask,
        "num_vq_tokens": config.grid.size,
        "vocab_size": phi.vocab_size,
        "w_clip_vit": False,
        "max_text_len": config.max_text,
        "llm_config": {
            "partial_rotary_factor": phi.rotary_dim / phi.head_dim,
            "rope_theta": phi.rope_theta,
            "layer_norm_eps": phi.norm_eps,
            "max_position_embeddings": phi.max_positions,
        },
    }


def showo_folder(folder, model: ShowO, suffix: str = "safetensors", **more):
    """A folder as it is put together from the downloads; returns it."""
    beside = folder / "magvitv2"
    beside.mkdir(parents=True)
    decoder, vq = official_showo(model)
    for place, tensors in ((folder, decoder | more), (beside, vq)):
        path = place / f"pytorch_model.{suffix}"
        if suffix == "bin":
            torch.save(tensors, path)
        else:
            save_file({n: t.contiguous() for n, t in tensors.items()}, path, {"format": "pt"})
    (beside / "config.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps(config_json(model.config)))
    (folder / "tokenizer.json").write_text(text_tokenizer(), encoding="utf-8")
    return folder
