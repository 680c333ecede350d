"""Checks of the patch database, and of a drawing that retrieves from it.

The second one has no official program: `daid_proposed` is one convention, which its README states.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...index import Hits, KeySpec, PatchIndex, SourceTable, create_index
from ...retrieval import Layers, make_retriever, proposal_distribution
from ...retrieval.query import QueryMaker
from ...settings import Duplicates, RetrievalOptions
from ..golden import EXACT, VECTORS, Golden, Values
from .drawing import CONFIDENCES, GoldenDrawing, together
from .fixture import PROBS, ShowOFixture

AROUND = KeySpec("ring-8", "zero", "codebook")


def golden_index(fixture: ShowOFixture, codes: Tensor) -> PatchIndex:
    """An index of pictures with codes [images, ...]."""
    tokens = codes.flatten(1).numpy().astype(np.uint16)
    sources = SourceTable.unknown(len(tokens))
    return create_index(fixture.grid, tokens, None, fixture.codebook, sources, AROUND, "bits")


def check_db(fixture: ShowOFixture, golden: Golden) -> Values:
    codes = fixture.golden("vq")["codes"].long()
    index = golden_index(fixture, codes)
    yield "vectors", VECTORS, fixture.codebook[codes.numpy()]
    yield "keys", VECTORS, index.searcher.reconstruct(np.arange(index.size))
    yield "values", EXACT, index.tokens.astype(np.int64)
    big = golden_index(fixture, golden["big.codes"])
    yield "big.keys_count", EXACT, torch.tensor([big.size])
    query = QueryMaker(AROUND, fixture.grid, fixture.codebook)
    known = (1 - fixture.golden("vanilla")["masked"]).bool().numpy()
    for name, mask in (("full", None), ("masked_zero", known)):
        queries = query.queries(codes[0].numpy(), np.arange(fixture.grid.size), mask)
        yield f"query_{name}", VECTORS, queries
        count = golden[f"{name}.distances"].shape[1]
        yield f"{name}.distances", EXACT, big.lookup(queries, count).distances
    yield from distribution_values(golden, fixture.settings["image_vocab"])


def distribution_values(golden: Golden, vocab: int) -> Values:
    """What given hits propose: all of them, or each code's nearest."""
    distances, codes = golden["distribution.distances"], golden["distribution.codes"].long()
    places = np.zeros((1, len(codes)), np.int64)
    hits = Hits(distances[None].numpy(), codes[None].numpy(), places, places)
    rules: dict[str, Duplicates] = {"plain": "sum", "unique": "first"}
    for name, duplicates in rules.items():
        options = RetrievalOptions(1.0, 1.0, len(codes), duplicates)
        yield f"distribution.{name}", PROBS, proposal_distribution(hits, options, vocab)[0]


STEP_LIMITS = {
    "active": EXACT,
    "retr_codes": EXACT,
    "retr_distances": EXACT,
    "p_merged": PROBS,
    "draws": EXACT,
    "sampled_ids": EXACT,
    "selected_probs": PROBS,
    "mask_len": EXACT,
    "confidence": CONFIDENCES,
    "confidence_margin": CONFIDENCES,
    "masked_after": EXACT,
    "tokens": EXACT,
}


def check_daid(fixture: ShowOFixture, golden: Golden) -> Values:
    index = golden_index(fixture, fixture.golden("db")["big.codes"])
    for name, settings in fixture.settings["daid_proposed"].items():
        options = RetrievalOptions(
            settings["retrieval_ratio"], settings["retrieval_temperature"], settings["top_k"]
        )
        retriever = make_retriever(
            index, fixture.grid, fixture.codebook, options, unknown=settings["masked_neighbours"]
        )
        drawings = [
            GoldenDrawing(fixture, golden, name, settings, i).run(Layers((retriever,)))
            for i in range(len(settings["prompts"]))
        ]
        for value, limit in STEP_LIMITS.items():
            yield f"{name}.{value}", limit, together(value, drawings)
