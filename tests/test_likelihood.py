"""Teacher-forced probabilities against the drawing loop and plain arithmetic."""

import numpy as np
import pytest
import torch

from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.likelihood import bits, mixed, model_probabilities, retrieve_truth
from arrag_engine.retrieval import Asked, layers_of, make_retriever, mix
from arrag_engine.settings import RetrievalOptions, Sampling
from tests.tiny import BLANK, PROMPT


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(3.0, 0.7, 10, 0.9)])
@pytest.mark.parametrize("other", [BLANK, [1, 4], [1, *range(5, 20), 4]])
def test_a_drawn_picture_is_as_probable_as_when_it_was_drawn(model, index, sampling, other):
    """The trace keeps what the model gave each token while it drew."""
    codebook = model.vq.codebook(model.device)
    retriever = make_retriever(index, model.config.grid, codebook, RetrievalOptions(0.3))
    drawing = draw_pictures(model, Recipe(PROMPT, other, sampling, layers_of(retriever)), [3])
    tokens = drawing.tokens.flatten().numpy()
    p = model_probabilities(model, PROMPT, other, tokens, sampling)
    assert p.shape == (36, model.config.vq.codebook_size)
    assert torch.allclose(p.sum(dim=1), torch.ones(36), atol=1e-5)
    [trace] = drawing.traces
    assert np.allclose(p[np.arange(36), tokens].numpy(), trace.p_model, atol=1e-5)
    found = retrieve_truth(retriever, tokens, retriever.options)
    assert np.allclose(found.p_true, trace.layers[0].p_retrieval[found.positions], atol=1e-6)
    assert np.array_equal(found.nearest, trace.layers[0].hits.codes[found.positions, 0])


def test_mixtures_are_those_of_drawing(model, index):
    codebook = model.vq.codebook(model.device)
    options = RetrievalOptions(0.4, 0.2, 8)
    retriever = make_retriever(index, model.config.grid, codebook, options)
    tokens = np.random.default_rng(0).integers(0, 64, 36)
    p = model_probabilities(model, PROMPT, BLANK, tokens)
    expected = p[np.arange(36), tokens].double().numpy()
    for i in np.flatnonzero(retriever.active):
        [proposal] = retriever.propose([Asked(tokens, np.array([int(i)]))])
        whole = mix(p[i], retriever.distribution(proposal, 64), 0.4)
        expected[i] = whole[tokens[i]]
    true = p[np.arange(36), tokens].numpy()
    lookup = retrieve_truth(retriever, tokens, options)
    assert np.allclose(mixed(true, lookup, 0.4), expected, atol=1e-6)
    assert np.array_equal(mixed(true, lookup, 0.0), true.astype(np.float64))
    shares = np.linspace(0, 1, len(lookup.positions))
    each = mixed(true, lookup, shares)
    for share, position, value in zip(shares, lookup.positions, lookup.p_true, strict=True):
        assert each[position] == pytest.approx((1 - share) * true[position] + share * value)


def test_bits():
    p = np.array([0.5, 0.25, 1.0])
    assert bits(p) == pytest.approx(1.0)
    assert bits(p, np.array([False, True, False])) == pytest.approx(2.0)
