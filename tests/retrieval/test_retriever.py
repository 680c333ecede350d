"""Queries from drawn tokens."""

import numpy as np
import pytest
import torch

from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.errors import InputError
from arrag_engine.grid import NEIGHBORHOODS, RASTER, Grid
from arrag_engine.index import KeySpec
from arrag_engine.retrieval import layers_of, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling
from tests import slow
from tests.tiny import BLANK, PROMPT, tiny_index, tiny_model

SPECS = [
    KeySpec(),
    KeySpec("causal-8", "zero"),
    KeySpec(borders="zero", space="codebook"),
    KeySpec(borders="zero", position_weight=0.5),
]
RING = KeySpec("ring-8")


def codebook_of(model):
    return model.vq.quantize.rows(torch.device("cpu")).numpy()


def retriever_for(model, spec=None, **options):
    index = tiny_index(model, spec=spec)
    options = RetrievalOptions(**options)
    return make_retriever(index, model.config.grid, codebook_of(model), options)


@pytest.mark.parametrize("spec", [*SPECS, RING], ids=str)
def test_a_query_is_the_codebook_rows_of_the_tokens_around(model, spec):
    retriever = retriever_for(model, spec)
    tokens = np.random.default_rng(0).integers(0, 64, 36)
    positions = np.flatnonzero(retriever.active)
    queries = retriever.query.queries(tokens, positions)
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
        assert np.array_equal(
            retriever.query.queries(tokens, place), retriever.query.queries(other, place)
        )


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_retrieval_is_active_where_the_index_has_keys(model, spec):
    retriever = retriever_for(model, spec)
    assert np.array_equal(np.flatnonzero(retriever.active), retriever.source.active)


def test_a_picture_of_the_index_finds_itself(model):
    """Keyed by codebook rows, its own patches lie at distance 0."""
    retriever = retriever_for(model, KeySpec(space="codebook"))
    positions = retriever.source.active
    for picture, tokens in enumerate(retriever.source.tokens.astype(np.int64)):
        found = retriever.lookup(tokens, positions, 1)
        np.testing.assert_allclose(found.distances, 0, atol=1e-5)
        assert set(found.sources[:, 0]) == {picture}
        assert np.array_equal(found.positions[:, 0], positions)
        assert np.array_equal(found.codes[:, 0], tokens[positions])


def test_an_index_of_another_grid_or_vq_is_refused(model):
    index = tiny_index(model)
    with pytest.raises(InputError, match="6x6 grid, the model draws 5x6"):
        make_retriever(index, Grid(5, 6), codebook_of(model))
    with pytest.raises(InputError, match="another VQ"):
        make_retriever(index, Grid(6, 6), codebook_of(tiny_model(1)))


def test_the_position_term_prefers_the_same_place(model):
    """With a heavy one the nearest patches stand where the query stands, whatever is around."""
    retriever = retriever_for(model, KeySpec(position_weight=100))
    positions = retriever.source.active
    found = retriever.lookup(np.random.default_rng(1).integers(0, 64, 36), positions, 5)
    # An index of 5 pictures.
    assert np.array_equal(found.positions, np.repeat(positions[:, None], 5, axis=1))


def test_an_index_keyed_by_tokens_still_to_come_cannot_be_drawn_with(model):
    retriever = retriever_for(model, RING, weight=0.5)
    with pytest.raises(
        InputError, match=r"by ring-8, .* later; .* causal-4, causal-8.* or causal-24"
    ):
        draw_pictures(model, Recipe(PROMPT, BLANK, Sampling(), layers_of(retriever)), [0])
    with pytest.raises(InputError, match="ring-8"):
        retriever.check_serves(RASTER)
    for spec in SPECS:
        retriever_for(model, spec).check_serves(RASTER)


def test_an_index_that_is_not_asked_may_be_keyed_by_anything(model):
    retriever = retriever_for(model, RING, weight=0)
    drawing = draw_pictures(model, Recipe(PROMPT, BLANK, Sampling(), layers_of(retriever)), [0])
    plain = draw_pictures(model, Recipe(PROMPT, BLANK, Sampling()), [0])
    assert torch.equal(drawing.tokens, plain.tokens)
