"""Checks of the picture tokenizer, the model, the index and DAiD."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..index import Hits
from ..models.janus.model import JanusPro
from ..models.pixels import to_uint8
from ..retrieval import make_retriever, mix, proposal_distribution
from ..sampling import guide, model_distribution
from ..settings import RetrievalOptions, Sampling
from .golden import (
    CFG_LOGITS,
    EXACT,
    LEVELS,
    LOGITS,
    PIXELS,
    PROBS,
    VECTORS,
    Fixture,
    Golden,
    Values,
    golden_index,
    greedy_values,
    padded,
    scatter_rows,
)


def check_vq(fixture: Fixture, golden: Golden) -> Values:
    vq = fixture.model.vq
    z = vq.quant_conv(vq.encoder(golden["images"]))
    codes, vectors = vq.encode(golden["images"])
    yield "z_pre_quant", LOGITS, z
    yield "z_normed", VECTORS, vectors
    yield "indices", EXACT, codes
    yield "z_quantised", VECTORS, vq.quantize(codes).permute(0, 3, 1, 2)
    yield "decoded", PIXELS, vq.decode(codes)


def check_vanilla(fixture: Fixture, golden: Golden) -> Values:
    model, cfg = fixture.model, fixture.settings["cfg_weight"]
    ids = torch.stack((golden["prompt_ids_cond"], golden["prompt_ids_uncond"])).long()
    path = golden["forced_tokens"].long()
    text, image = model.embed_text(ids), model.embed_codes(path[:-1])
    yield "prompt_embeds", LOGITS, text
    yield "image_embeds", LOGITS, image
    hidden, logits = forced_pass(model, text, image)
    for row, stream in enumerate(("cond", "uncond")):
        yield f"hidden_{stream}", LOGITS, hidden[row]
        yield f"logits_{stream}", LOGITS, logits[row]
    guided = guide(logits, cfg)[0]
    yield "logits_cfg", CFG_LOGITS, guided
    for t in fixture.settings["probs_temperatures"]:
        yield f"probs_t{t}", PROBS, model_distribution(guided, Sampling(cfg, t))
    decoded = fixture.decode(path)
    yield "forced_decoded", PIXELS, decoded
    yield "forced_image_u8", LEVELS, to_uint8(decoded)
    yield from greedy_values("greedy", fixture, golden["prompt_ids_cond"], fixture.sampling(1.0))


def forced_pass(model: JanusPro, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and logits [streams, N, .] at the predicting positions, fed step by step."""
    streams, length, _ = text.shape
    total = length + len(image)
    cache = model.new_cache(streams, total, text.device)
    hidden = [model.llama(text, None, cache)[:, -1:]]
    for i, x in enumerate(image.expand(streams, -1, -1).split(1, dim=1)):
        hidden.append(model.llama(x, [length + i] * streams, cache))
    states = torch.cat(hidden, dim=1)
    return states, model.gen_head(states)


def check_db(fixture: Fixture, golden: Golden) -> Values:
    for name in ("grid", "grid24"):
        if f"{name}.vectors" not in golden:
            continue
        index = golden_index(golden, name, np.empty((0, 0), np.float32))
        assert index.vectors is not None
        yield f"{name}.keys", EXACT, index.searcher.reconstruct(np.arange(index.size))
        yield f"{name}.values", EXACT, index.tokens[:, index.active].astype(np.int64)


def check_daid(fixture: Fixture, golden: Golden) -> Values:
    db, vanilla = fixture.golden("db"), fixture.golden("vanilla")
    k = fixture.settings["daid"]["top_k"]
    index = golden_index(db, "grid", fixture.codebook)
    retriever = make_retriever(index, fixture.grid, fixture.codebook)
    path = vanilla["forced_tokens"].long().numpy()
    active = np.flatnonzero(retriever.active)
    queries = retriever.query.queries(path, active)
    hits = index.lookup(queries, k)
    yield "a.forced.active", EXACT, retriever.active
    yield "a.forced.query", VECTORS, scatter_rows(queries, active, len(path), 0)
    for name, limit, rows in (
        ("neighbour_ids", EXACT, index.numbers(hits)),
        ("distances", PROBS, hits.distances),
        ("codes", EXACT, hits.codes),
    ):
        yield f"a.forced.{name}", limit, scatter_rows(padded(rows, k), active, len(path), -1)
    yield from unique_values(hits, active, len(path), k)
    ids = torch.stack((vanilla["prompt_ids_cond"], vanilla["prompt_ids_uncond"])).long()
    model = fixture.model
    image = model.embed_codes(torch.from_numpy(path)[:-1])
    guided = guide(
        forced_pass(model, model.embed_text(ids), image)[1], fixture.settings["cfg_weight"]
    )
    for name, s in fixture.settings["daid"]["settings"].items():
        options = RetrievalOptions(s["retrieval_ratio"], s["retrieval_temperature"], k)
        sampling = fixture.sampling(s["temperature"])
        p_model = model_distribution(guided[0], sampling)
        p_retr = torch.zeros_like(p_model)
        p_retr[active] = proposal_distribution(hits, options, p_model.shape[1])
        p_merged = p_model.clone()
        p_merged[active] = mix(p_model[active], p_retr[active], s["retrieval_ratio"])
        yield f"{name}.forced.p_model", PROBS, p_model
        yield f"{name}.forced.p_retr", PROBS, p_retr
        yield f"{name}.forced.p_merged", PROBS, p_merged
        yield from greedy_values(
            f"{name}.greedy",
            fixture,
            vanilla["prompt_ids_cond"],
            sampling,
            retriever.using(options),
        )


def unique_values(hits: Hits, active: np.ndarray, size: int, k: int) -> Values:
    """Each row's codes and distances after keeping every code's nearest occurrence only."""
    codes = np.full((size, k), -1)
    distances = np.full((size, k), -1.0)
    counts = np.zeros(size)
    for position, row_codes, row in zip(active, hits.codes, hits.distances, strict=True):
        first = np.sort(np.unique(row_codes, return_index=True)[1])
        codes[position, : len(first)] = row_codes[first]
        distances[position, : len(first)] = row[first]
        counts[position] = len(first)
    yield "a.forced.unique_codes", EXACT, codes
    yield "a.forced.unique_distances", PROBS, distances
    yield "a.forced.unique_count", EXACT, counts
