"""Tiny seeded models and indexes for tests."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from arrag_engine.checkpoints import describe_config, load_checkpoint, write_checkpoint
from arrag_engine.checkpoints.adapter import AdapterInfo, save_adapter
from arrag_engine.faid import AdapterConfig, FaidAdapter
from arrag_engine.grid import Grid
from arrag_engine.index import KeySpec, PatchIndex, Source, create_index
from arrag_engine.models.janus.layouts import official_name
from arrag_engine.models.janus.model import JanusConfig, JanusPro
from arrag_engine.models.janus.prompt import (
    BEGIN_OF_IMAGE,
    BEGIN_OF_SENTENCE,
    PAD,
    unconditional,
)
from arrag_engine.models.janus.vq import VQConfig
from arrag_engine.models.llama import LlamaConfig
from arrag_engine.models.tokenizing import UNKNOWN

WORDS = ["a", "red", "car", "two", "apples", ":"]
PROMPT = [1, 5, 6, 7, 4]
PAD_ID = 2
BLANK = unconditional(PROMPT, PAD_ID)


def tiny_config(side: int = 6, kv_heads: int = 4, heads: int = 4, hidden: int = 32) -> JanusConfig:
    llama = LlamaConfig(40, hidden, 48, 2, heads, kv_heads, max_positions=512)
    return JanusConfig(llama, VQConfig(32, (1, 1), 1, 32, 64, 8), Grid(side, side))


def crooked_config(side: int = 6) -> JanusConfig:
    """Sizes of which no two are equal: nothing fits by accident."""
    llama = LlamaConfig(40, 36, 48, 3, 4, 2, max_positions=1024, head_dim=14)
    vq = VQConfig(32, (2, 5), 1, 42, 50, 10, (128, 192), 4, 46)
    return JanusConfig(llama, vq, Grid(side, side), (6, 20, 24, 36), 44)


def tiny_model(seed: int = 0, config: JanusConfig | None = None) -> JanusPro:
    """A model whose weights are all random, norms and biases too: nothing is an identity."""
    torch.manual_seed(seed)
    model = JanusPro(config or tiny_config()).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        scale = 1.0 if "embed" in name else 0.3
        mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.normal_(mean, scale)
    return model


def tiny_tokenizer() -> str:
    """A word-level tokenizer as JSON."""
    special = [UNKNOWN, BEGIN_OF_SENTENCE, PAD, "<|User|>", BEGIN_OF_IMAGE, "<|Assistant|>"]
    vocab = {token: i for i, token in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return tokenizer.to_str()


def official_tensors(model: JanusPro) -> dict[str, torch.Tensor]:
    return {official_name(name): tensor for name, tensor in model.state_dict().items()}


def blender_tensors(
    hidden: int, layers: tuple[int, ...], hops: tuple[int, ...] = (1, 2), seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random FAiD blenders by their official names."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.15

    tensors = {}
    for layer in layers:
        prefix = f"language_model.model.layers.{layer}."
        for hop in hops:
            for conv in (f"conv{hop}", f"conv{hop}2"):
                shape = (hidden, hidden, hop + 1, hop + 1)
                tensors[f"{prefix}blender.{conv}.weight"] = normal(*shape)
                tensors[f"{prefix}blender.{conv}.bias"] = normal(hidden)
        if len(hops) == 2:
            tensors[f"{prefix}blender.conv_weights"] = normal(2)
        for name, shape in (("0", (hidden, hidden)), ("2", (1, hidden))):
            tensors[f"{prefix}blender.mlp.{name}.weight"] = normal(*shape)
            tensors[f"{prefix}blender.mlp.{name}.bias"] = normal(shape[0])
        tensors[f"{prefix}retrieval_layernorm.weight"] = 1 + normal(hidden)
    return tensors


TRANSFORMERS_NAMES = (
    ("language_model.model.", "model.language_model."),
    ("gen_embed.", "model.generation_embeddings."),
    ("gen_aligner.layers.0.", "model.generation_aligner.fc1."),
    ("gen_aligner.layers.2.", "model.generation_aligner.hidden_layers.0."),
    ("gen_head.output_mlp_projector.", "model.generation_head.proj_out."),
    ("gen_head.vision_head.", "model.generation_head.vision_head."),
    ("gen_vision_model.", "model.vqmodel."),
    ("encoder.conv_blocks.", "encoder.down."),
    ("decoder.conv_blocks.", "decoder.up."),
    (".res.", ".block."),
    (".mid.0.", ".mid.block_1."),
    (".mid.1.", ".mid.attn_1."),
    (".mid.2.", ".mid.block_2."),
)


def transformers_name(official: str) -> str:
    """The name that transformers gives a tensor of the official checkpoint."""
    for old, new in TRANSFORMERS_NAMES:
        official = official.replace(old, new)
    return official


def write_tiny(path, model: JanusPro | None = None):
    """The model as our single file; returns the path."""
    model = model or tiny_model()
    config = describe_config(model.config)
    write_checkpoint(path, official_tensors(model), model.config.grid, config, tiny_tokenizer())
    return path


def tiny_index(
    model: JanusPro,
    images: int = 5,
    seed: int = 0,
    spec: KeySpec | None = None,
    structure: str = "auto",
) -> PatchIndex:
    """An index of random token grids, keyed by noisy codebook rows."""
    rng = np.random.default_rng(seed)
    grid, codes = model.config.grid, model.config.vq.codebook_size
    codebook = model.vq.quantize.rows(torch.device("cpu")).numpy()
    tokens = rng.integers(0, codes, (images, grid.size)).astype(np.uint16)
    vectors = codebook[tokens] + rng.normal(0, 0.05, (images, grid.size, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    sources = [tiny_source(i, seed) for i in range(images)]
    vectors = vectors.astype(np.float32)
    return create_index(grid, tokens, vectors, codebook, sources, spec, structure)


def tiny_source(i: int, seed: int = 0) -> Source:
    """Where a token grid could come from; no two are the same picture."""
    sha256 = hashlib.sha256(f"{seed} {i}".encode()).hexdigest()
    jpeg = io.BytesIO()
    Image.new("RGB", (9, 9), (20 * i % 256, 0, 99)).save(jpeg, "JPEG")
    origin, crop = f"https://example.org/{i}", (0, 2, 12, 14)
    return Source(f"{i}.png", f"picture {i}", 12, 16, sha256, "CC0", jpeg.getvalue(), origin, crop)


def tiny_adapter(
    model: JanusPro, config: AdapterConfig | None = None, seed: int = 5, scale: float = 0.3
) -> FaidAdapter:
    """An adapter, not folded, whose weights are all random."""
    torch.manual_seed(seed)
    config = config or AdapterConfig((0,), (1, 2), rank=4, alpha=8.0, head=True)
    adapter = FaidAdapter(model.config, config).eval().requires_grad_(False)
    for parameter in adapter.parameters():
        parameter.normal_(0, scale)
    return adapter


def write_adapter(
    path, model_file, config: AdapterConfig | None = None, seed: int = 5, scale: float = 0.3
):
    """A random adapter for the model in a file; returns the path."""
    base = load_checkpoint(model_file, torch.float32)
    adapter = tiny_adapter(base.model, config, seed, scale)
    hidden = base.model.hidden_size
    info = AdapterInfo(adapter.config, base.name, base.fingerprint, hidden, "tiny-index", "abc")
    save_adapter(path, adapter, info, torch.float32)
    return path
