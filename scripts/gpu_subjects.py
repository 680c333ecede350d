"""What `check_gpu` draws, and with which models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from arrag_engine import load_adapter, load_index, load_model
from arrag_engine.decode import KeptPasses, Recipe, draw_pictures
from arrag_engine.faid import AdapterConfig, Faid, FaidAdapter
from arrag_engine.index import SourceTable, create_index
from arrag_engine.models.janus.model import JanusPro
from arrag_engine.models.janus.prompt import unconditional
from arrag_engine.retrieval import Retriever, layers_of, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling
from scripts import gpu

CPU = torch.device("cpu")
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Wish:
    """What is drawn."""

    sampling: Sampling
    weight: float | None = None
    """λ; None = no retrieval."""
    strength: float = 0.0
    """Of the adapter; 0 = none."""


@dataclass(frozen=True)
class Subject:
    """A model at one place, with all that it draws with."""

    model: JanusPro
    adapter: FaidAdapter
    retriever: Retriever
    prompt: Sequence[int]
    blank: Sequence[int]

    def recipe(self, wish: Wish) -> Recipe:
        retriever = faid = None
        if wish.weight is not None or wish.strength:
            options = replace(self.retriever.options, weight=wish.weight or 0.0)
            retriever = self.retriever.using(options)
        if wish.strength:
            faid = Faid(self.adapter, wish.strength)
        return Recipe(self.prompt, self.blank, wish.sampling, layers_of(retriever), faid)

    def draw(
        self,
        wish: Wish,
        seeds: Sequence[int],
        window: int = 1,
        kept: KeptPasses | None = None,
    ) -> Tensor:
        """Tokens [B, N]; by passes of fixed shape if `kept` is given."""
        drawing = draw_pictures(self.model, self.recipe(wish), seeds, window, kept=kept)
        return drawing.tokens.flatten(1)


Make = Callable[[torch.dtype, torch.device], Subject]


def tiny_subject(dtype: torch.dtype, device: torch.device) -> Subject:
    """A random model so loud that no two tokens are about equally probable."""
    model = gpu.random_model(gpu.TINY, torch.float32, CPU)
    gpu.randomise(model, 3, 0.3)
    for embedding in (model.llama.embed_tokens, model.gen_embed):
        embedding.weight.data.normal_(generator=gpu.seeded(CPU, 4))
    config = AdapterConfig((0,), (1, 2), rank=4, alpha=8.0, head=True, candidates=3)
    adapter = gpu.random_adapter(model, config, 0.3)
    rng, codebook = np.random.default_rng(0), model.vq.codebook(CPU)
    tokens = rng.integers(0, model.vocab, (20, model.grid.size)).astype(np.uint16)
    index = create_index(
        model.grid, tokens, codebook[tokens], codebook, SourceTable.unknown(len(tokens))
    )
    options = RetrievalOptions(0.1, 0.5, 9)
    retriever, prompt = make_retriever(index, model.grid, codebook, options), [1, 5, 6, 7, 4]
    model, adapter = gpu.to_dtype(model, dtype).to(device), adapter.to(dtype).to(device)
    return Subject(model, adapter, retriever, prompt, unconditional(prompt, 2))


def pocket_subject(dtype: torch.dtype, device: torch.device) -> Subject:
    names = {torch.float32: "fp32", **{dtype: name for name, dtype in HALVES.items()}}
    checkpoint = load_model("pocket", names[dtype], str(device))
    model, adapter = cast(JanusPro, checkpoint.model), load_adapter("pocket", checkpoint)
    codebook = model.vq.codebook(device)
    retriever = make_retriever(load_index("pocket"), model.grid, codebook)
    prompt = checkpoint.prompt_encoder.encode("a red car")
    return Subject(model, adapter, retriever, prompt.ids, prompt.unconditional)


SUBJECTS: dict[str, Make] = {"tiny": tiny_subject, "pocket": pocket_subject}
