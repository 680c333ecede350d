"""Queries from drawn tokens."""

import numpy as np
import pytest
import torch

from arrag_engine.daid import Retrieval, RetrievalOptions
from arrag_engine.decode import draw_pictures
from arrag_engine.errors import InputError
from arrag_engine.grid import NEIGHBORHOODS, Grid
from arrag_engine.index import KeySpec
from arrag_engine.retriever import Retriever
from arrag_engine.sampling import Sampling
from tests import slow
from tests.tiny import PAD_ID, PROMPT, tiny_index, tiny_model

SPECS = [
    KeySpec(),
    KeySpec("causal-8", "zero"),
    KeySpec(borders="zero", space="codebook"),
    KeySpec(borders="zero", position_weight=0.5),
]
RING = KeySpec("ring-8")


def codebook_of(model):
    return model.vq.quantize.rows(torch.device("cpu")).numpy()


def retriever_for(model, spec=None):
    index = tiny_index(model, spec=spec)
    return Retriever(index, model.config.grid, codebook_of(model))


@pytest.mark.parametrize("spec", [*SPECS, RING], ids=str)
def test_a_query_is_the_codebook_rows_of_the_tokens_around(model, spec):
    retriever = retriever_for(model, spec)
    tokens = np.random.default_rng(0).integers(0, 64, 36)
    positions = np.flatnonzero(retriever.active)
    queries = retriever.queries(tokens, positions)
    offsets = NEIGHBORHOODS[spec.neighborhood]
    for query, position in zip(queries, positions, strict=True):
        wanted = slow.key(codebook_of(model)[tokens], Grid(6, 6), offsets, position)
        weight, place = spec.position_weight, np.array(divmod(position, 6)) / 6
        wanted = np.concatenate((wanted, weight * place)) if weight else wanted
        assert np.array_equal(query, wanted.astype(np.float32))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_query_does_not_look_at_tokens_still_to_come(model, spec):
    retriever = retriever_for(model, spec)
    tokens = np.arange(36)
    for position in np.flatnonzero(retriever.active):
        other = tokens.copy()
        other[position:] = 63
        place = np.array([position])
        assert np.array_equal(retriever.queries(tokens, place), retriever.queries(other, place))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_retrieval_is_active_where_the_index_has_keys(model, spec):
    retriever = retriever_for(model, spec)
    assert np.array_equal(np.flatnonzero(retriever.active), retriever.index.active)


def test_a_picture_of_the_index_finds_itself(model):
    """Keyed by codebook rows, its own patches lie at distance 0."""
    retriever = retriever_for(model, KeySpec(space="codebook"))
    positions = retriever.index.active
    for picture, tokens in enumerate(retriever.index.tokens.astype(np.int64)):
        found = retriever.retrieve(tokens, positions, 1)
        np.testing.assert_allclose(found.distances, 0, atol=1e-5)
        sources, places = retriever.index.locate(found.ids[:, 0])
        assert set(sources) == {picture}
        assert np.array_equal(places, positions)
        assert np.array_equal(found.codes[:, 0], tokens[positions])


def test_an_index_of_another_grid_or_vq_is_refused(model):
    index = tiny_index(model)
    with pytest.raises(InputError, match="6x6 grid, the model draws 5x6"):
        Retriever(index, Grid(5, 6), codebook_of(model))
    with pytest.raises(InputError, match="another VQ"):
        Retriever(index, Grid(6, 6), codebook_of(tiny_model(1)))


def test_the_position_term_prefers_the_same_place(model):
    """With a heavy one the nearest patches stand where the query stands, whatever is around."""
    retriever = retriever_for(model, KeySpec(position_weight=100))
    positions = retriever.index.active
    found = retriever.retrieve(np.random.default_rng(1).integers(0, 64, 36), positions, 5)
    _, places = retriever.index.locate(found.ids)  # an index of 5 pictures
    assert np.array_equal(places, np.repeat(positions[:, None], 5, axis=1))


def test_an_index_keyed_by_tokens_still_to_come_cannot_be_drawn_with(model):
    retrieval = Retrieval(retriever_for(model, RING), RetrievalOptions(weight=0.5))
    with pytest.raises(
        InputError, match=r"by ring-8, .* later; .* causal-4, causal-8.* or causal-24"
    ):
        draw_pictures(model, PROMPT, PAD_ID, Sampling(), [0], retrieval)
    with pytest.raises(InputError, match="ring-8"):
        retrieval.retriever.check_causal()
    for spec in SPECS:
        retriever_for(model, spec).check_causal()


def test_an_index_that_is_not_asked_may_be_keyed_by_anything(model):
    options = RetrievalOptions(weight=0)
    retrieval = Retrieval(retriever_for(model, RING), options)
    drawing = draw_pictures(model, PROMPT, PAD_ID, Sampling(), [0], retrieval)
    plain = draw_pictures(model, PROMPT, PAD_ID, Sampling(), [0])
    assert torch.equal(drawing.tokens, plain.tokens)
