"""Proposals from retrieved patches, and the mixture."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arrag_engine.errors import InputError
from arrag_engine.index import Hits
from arrag_engine.retrieval import mix, proposal_distribution
from arrag_engine.settings import RetrievalOptions
from tests import slow

VOCAB = 9


def hits_of(rows):
    """Hits [B, K] of rows of (distance, code), padded with "nothing found"."""
    width = max(map(len, rows))
    distances = np.full((len(rows), width), np.inf, np.float32)
    codes, places = np.full((len(rows), width), -1), np.full((len(rows), width), -1)
    for b, row in enumerate(rows):
        for k, (distance, code) in enumerate(row):
            distances[b, k], codes[b, k], places[b, k] = distance, code, k
    return Hits(distances, codes, places, places)


FOUND = st.lists(
    st.tuples(st.floats(0, 16, width=32), st.integers(0, VOCAB - 1)), min_size=1, max_size=20
).map(sorted)


@given(st.lists(FOUND, min_size=1, max_size=3), st.sampled_from(("first", "sum")))
def test_proposals_equal_a_walk_through_the_neighbours(rows, duplicates):
    options = RetrievalOptions(temperature=0.7, duplicates=duplicates)
    found = proposal_distribution(hits_of(rows), options, VOCAB)
    wanted = [slow.proposals(row, VOCAB, options) for row in rows]
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)


def test_first_counts_the_nearest_of_a_code_and_sum_counts_all():
    hits = hits_of([[(0.0, 4), (1.0, 7), (1.0, 7)]])
    e = np.exp(-1)
    first = proposal_distribution(hits, RetrievalOptions(temperature=1), VOCAB)[0]
    assert float(first[7]) == pytest.approx(e / (1 + e))
    both = RetrievalOptions(temperature=1, duplicates="sum")
    summed = proposal_distribution(hits, both, VOCAB)[0]
    assert float(summed[7]) == pytest.approx(2 * e / (1 + 2 * e))


def test_where_nothing_was_found_all_is_zero_and_other_rows_are_untouched():
    hits = hits_of([[], [(0.5, 3)]])
    for duplicates in ("first", "sum"):
        options = RetrievalOptions(duplicates=duplicates)
        found = proposal_distribution(hits, options, VOCAB)
        assert found[0].tolist() == [0] * VOCAB
        assert found[1].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("temperature", [1e-4, 1000])
def test_extreme_temperatures_stay_distributions(temperature):
    hits = hits_of([[(15.9, 1), (16.0, 2)]])
    found = proposal_distribution(hits, RetrievalOptions(temperature=temperature), VOCAB)[0]
    wanted = [1, 0] if temperature < 1 else [0.5, 0.5]
    np.testing.assert_allclose(found[1:3].numpy(), wanted, atol=1e-4)
    assert float(found.sum()) == pytest.approx(1)


def test_top_p_keeps_the_most_probable_proposals():
    hits = hits_of([[(0.0, 5), (0.0, 6), (3.0, 1)]])
    options = RetrievalOptions(temperature=1, top_p=0.9)
    found = proposal_distribution(hits, options, VOCAB)[0]
    assert found[[5, 6, 1]].tolist() == pytest.approx([0.5, 0.5, 0])


def test_the_mixture_weighs_both_parts():
    model, retrieved = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    assert mix(model, retrieved, 0.2).tolist() == pytest.approx([0.4, 0.4, 0.2])
    assert mix(model, retrieved, 1.0).tolist() == [0, 0, 1]


def test_weight_zero_is_the_model_bit_for_bit():
    model = torch.rand(50).softmax(-1)
    assert mix(model, torch.full((50,), torch.nan), 0) is model


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("weight", -0.1, "weight"),
        ("weight", 1.1, "weight"),
        ("weight", float("nan"), "weight"),
        ("temperature", 0, "temperature"),
        ("temperature", -1, "temperature"),
        ("temperature", 1e-40, "temperature"),
        ("temperature", 1e4, "temperature"),
        ("temperature", float("nan"), "temperature"),
        ("neighbours", 0, "neighbours"),
        ("duplicates", "last", "duplicates"),
        ("top_p", 0, "top_p"),
        ("top_p", 2, "top_p"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name_and_value(field, value, name):
    with pytest.raises(InputError, match=f"{name} is {value!r}"):
        RetrievalOptions(**{field: value})
