"""The rows of `bench_gpu` for Show-o, and what they are compared with: a full pass over text and
picture in every step, as the official loop does it."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from arrag_engine.decode import KeptPasses, Recipe, draw_pictures
from arrag_engine.decode.canvas import begin
from arrag_engine.decode.masked_passes import open_masked
from arrag_engine.index import KeySpec, SourceTable, create_index
from arrag_engine.models.showo.layouts import official_name
from arrag_engine.models.showo.model import BORDERS, MaskedAttention, ShowO, ShowOConfig
from arrag_engine.models.showo.prompt import text_ids
from arrag_engine.retrieval import Retriever, device_index, layers_of, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling, Schedule
from scripts import gpu
from scripts.launch_comfyui import declare_missing_operators

AROUND = KeySpec("ring-8", "zero", "codebook")
DAID = RetrievalOptions(weight=0.1, temperature=2.0, neighbours=10)
WORDS = 18
"""Of a prompt."""


@dataclass(frozen=True)
class Showo:
    """One size of Show-o, with the settings of its official examples."""

    name: str
    config: ShowOConfig
    steps: int
    guidance: float
    """The official number: the engine's is one more."""

    def recipe(self, *used: Retriever) -> Recipe:
        vocabulary = self.config.vocabulary
        words = np.random.default_rng(2).integers(1, vocabulary.text, WORDS).tolist()
        prompt, blank = (
            text_ids(some, vocabulary, vocabulary.text - 1, self.config.max_text)
            for some in (words[: self.config.max_text - 2], [])
        )
        blank = [*[vocabulary.special("pad")] * (len(prompt) - len(blank)), *blank]
        sampling, schedule = Sampling(1 + self.guidance), Schedule(self.steps)
        return Recipe(prompt, blank, sampling, layers_of(*used), schedule=schedule)


REAL = (
    Showo("256 px", gpu.SHOWO_256, 16, 1.75),
    Showo("512 px", gpu.SHOWO_512, 50, 5.0),
)
SMALL = (Showo("tiny", gpu.TINY_SHOWO, 3, 1.75),)


class Uncached:
    """A model that keeps nothing of its prompts: every pass computes text and picture, padded to
    one length, behind a mask. The head predicts picture tokens only, as the engine's does."""

    repeats = False

    def __init__(self, model: ShowO) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def open(self, ids: Tensor, hook: None = None) -> tuple[Tensor, Tensor]:
        """Prompts [rows, T] with pads, and who sees whom [rows, 1, L, L]."""
        config = self.model.config
        pad = config.vocabulary.special("pad")
        ids = F.pad(ids, (config.max_text + 1 - ids.shape[1], 0), value=pad)
        return ids, official_mask(ids == pad, config.length)

    def masked_logits(
        self,
        opened: tuple[Tensor, Tensor],
        tokens: Tensor,
        known: Tensor,
        hook: None = None,
    ) -> Tensor:
        """See `MaskedBackbone`; without an adapter."""
        prompts, mask = (one.repeat_interleave(len(tokens) // len(one), dim=0) for one in opened)
        ids = torch.cat((prompts, self.model.picture_ids(tokens, known)), dim=1)
        return self.of_sequences(ids, mask)

    def of_sequences(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits [rows, N, codes] of whole sequences [rows, L]."""
        model, size = self.model, self.model.grid.size
        positions = torch.arange(ids.shape[1], device=ids.device)
        hidden = model.phi(model.embed(ids), positions, MaskedAttention(mask))
        return model.head(hidden[:, -size - 1 : -1])


def official_mask(pads: Tensor, length: int) -> Tensor:
    """Mask [rows, 1, L, L], True where a query sees a key, of the pads among the text [rows, T].

    Text sees text before it, a picture sees everything, nobody sees pads; a pad, of which nobody
    reads anything, sees what stands before it, so that it sees something.
    """
    text = pads.shape[1]
    places = torch.arange(length, device=pads.device)
    sees = (places <= places[:, None]) | (places[:, None] >= text)  # [L, L]
    begun = ~F.pad(pads, (0, length - text), value=False)  # [rows, L]
    mask = sees & (begun[:, None] | ~begun[:, :, None])
    return mask[:, None]


class TransformersPhi(Uncached):
    """The same with transformers' Phi, whose head predicts the whole vocabulary for every id, as
    the official program's does."""

    def __init__(self, model: ShowO) -> None:
        super().__init__(model)
        self.theirs = transformers_phi(model)

    def of_sequences(self, ids: Tensor, mask: Tensor) -> Tensor:
        added = torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device)
        added.masked_fill_(~mask, torch.finfo(added.dtype).min)
        logits = self.theirs(input_ids=ids, attention_mask=added, use_cache=False).logits
        first, size = self.model.config.vocabulary.first_code, self.model.grid.size
        return logits[:, -size - 1 : -1, first : first + self.model.vocab]


def transformers_phi(model: ShowO) -> Any:
    """transformers' Phi on the same weight tensors; the rows of its head for text are zeros.

    Raises:
        ImportError: transformers is not installed.
    """
    declare_missing_operators()  # transformers imports torchvision
    # Not by a statement: half a type check's time would be spent on transformers.
    transformers: Any = importlib.import_module("transformers")
    phi = model.config.phi
    config = transformers.PhiConfig(
        vocab_size=phi.vocab_size,
        hidden_size=phi.hidden_size,
        intermediate_size=phi.intermediate_size,
        num_hidden_layers=phi.num_layers,
        num_attention_heads=phi.num_heads,
        num_key_value_heads=phi.num_kv_heads,
        partial_rotary_factor=phi.rotary_dim / phi.head_dim,
        rope_theta=phi.rope_theta,
        layer_norm_eps=phi.norm_eps,
        max_position_embeddings=phi.max_positions,
        qk_layernorm=True,
        pad_token_id=None,
    )
    with torch.device("meta"):
        theirs = transformers.PhiForCausalLM(config)
    state = {
        official_name(name).removeprefix("showo."): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith("phi.")
    }
    first = model.config.vocabulary.first_code
    for name in ("weight", "bias"):
        own = getattr(model.head, name)
        whole = own.new_zeros((phi.vocab_size, *own.shape[1:]))
        whole[first : first + len(own)] = own
        state[f"lm_head.{name}"] = whole
    theirs.load_state_dict(state, assign=True)
    for module in theirs.modules():  # buffers that meta construction left empty
        if hasattr(module, "inv_freq"):
            frequencies = type(module)(config).inv_freq.to(model.device)
            module.inv_freq, module.original_inv_freq = frequencies, frequencies
    return theirs.eval()


def sign_retriever(model: ShowO, patches: int) -> Retriever:
    """An index of random pictures, searched by bits on the device."""
    grid, codebook = model.grid, model.vq.codebook(model.device)
    images = -(-patches // grid.size)
    tokens = np.random.default_rng(0).integers(0, model.vocab, (images, grid.size), np.uint16)
    sources = SourceTable.unknown(images)
    index = create_index(grid, tokens, None, codebook, sources, AROUND, "bits")
    return make_retriever(device_index(index, model.device), grid, codebook, DAID)


def drawing_seconds(model: Any, recipe: Recipe, seeds: Sequence[int], kept: KeptPasses) -> float:
    """Of whole drawings, to tokens."""
    device = model.device
    return gpu.seconds(
        device, lambda: draw_pictures(model, recipe, seeds, device=device, kept=kept)
    )


def by_turns(
    model: Any, recipe: Recipe, other: Any, its: Recipe, rounds: int, kept: KeptPasses
) -> list[list[float]]:
    """Seconds of pictures of two drawings [2][rounds], one after the other; the first pair warms
    up."""
    pairs = [
        (drawing_seconds(model, recipe, [seed], kept), drawing_seconds(other, its, [seed], kept))
        for seed in range(rounds + 1)
    ]
    return [[pair[i] for pair in pairs[1:]] for i in range(2)]


def ratio(others: Sequence[float], ours: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(others, ours, strict=True))


def tokens_to_pixels(model: ShowO) -> float:
    """Seconds."""
    codes = torch.zeros(
        1, model.grid.height, model.grid.width, dtype=torch.long, device=model.device
    )
    with torch.inference_mode():
        taken = [gpu.seconds(model.device, lambda: model.vq.decode(codes)) for _ in range(4)]
    return statistics.median(taken[1:])


def pass_seconds(model: Any, recipe: Recipe, kept: KeptPasses, rounds: int = 5) -> float:
    """Of one pass over both streams of a picture of which nothing is known."""
    device = model.device
    with torch.inference_mode():
        passes = open_masked(model, recipe, 1, device, kept)
        canvas, known = begin(0, model.grid.size), np.zeros((1, model.grid.size), bool)
        taken = [
            gpu.seconds(device, lambda: passes.predict([canvas], known)) for _ in range(rounds + 1)
        ]
        passes.close()
    return statistics.median(taken[1:])


def sequence_length(config: ShowOConfig) -> str:
    return f"{config.length} ids a stream, of which {config.grid.size + BORDERS} are the picture's"
