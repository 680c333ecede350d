"""Variety against a plain definition."""

import numpy as np
import pytest

from arrag_engine.evaluate.measures import seed_variety
from scripts.pocket.bench.measures import foreground


def test_variety_is_the_share_of_tokens_that_differ_from_the_other_seeds():
    tokens = np.random.default_rng(0).integers(0, 3, (4, 30))
    counted = np.random.default_rng(1).random((4, 30)) < 0.4
    for i, own in enumerate(seed_variety(tokens)):
        others = [np.mean(tokens[i] != tokens[j]) for j in range(4) if j != i]
        assert own == pytest.approx(np.mean(others))
    for i, own in enumerate(seed_variety(tokens, counted)):
        others = [
            np.mean((tokens[i] != tokens[j])[counted[i] | counted[j]]) for j in range(4) if j != i
        ]
        assert own == pytest.approx(np.mean(others))
    assert seed_variety(tokens[[0, 0]]).tolist() == [0, 0]
    assert seed_variety(tokens[:2], counted[:2] & False).tolist() == [0, 0]


def test_the_most_frequent_token_is_the_background():
    marked = foreground(np.array([[7, 7, 1, 7], [2, 3, 3, 0]]))
    assert marked.tolist() == [[False, False, True, False], [True, False, False, True]]
