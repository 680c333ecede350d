"""Which pictures a prompt is about."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrag_engine.index.subject import find_subject, fold, singular

CAPTIONS = [
    "a flamingo",  # 0
    "two flamingos on the beach",  # 1
    "an owl on the grass",  # 2
    "a guitar",  # 3
    "a red car on the beach",  # 4
    "a car at night",  # 5
    "",  # 6
]


@pytest.mark.parametrize(
    ("prompt", "images", "first"),
    [
        ("a flamingo", [0, 1], "flamingo"),
        ("A FLAMINGO!", [0, 1], "flamingo"),
        ("flamingos", [0, 1], "flamingo"),
        ("two flamingos on the beach", [1], "two"),
        ("the guitar", [3], "guitar"),
        ("owls and guitars", [2, 3], "guitar"),
        ("a red car", [4], "red"),
        ("gibberish", [], None),
        ("", [], None),
    ],
)
def test_the_rarest_shared_words_decide(prompt, images, first):
    found = find_subject(CAPTIONS, [prompt])
    assert found.images.tolist() == images
    assert (found.words[0] if found.words else None) == first
    assert "a" not in found.words


def test_frequent_words_drop_out_in_any_language():
    captions = ["der Hund auf der Wiese", "der Vogel auf dem Dach", "der Hund im Haus", "der Baum"]
    captions += ["der Hund auf dem Berg"]
    assert find_subject(captions, ["der Vogel auf der Wiese"]).words == ("vogel", "wiese")
    assert "der" not in find_subject(captions, ["der Hund"]).words


@pytest.mark.parametrize(
    ("prompt", "images"),
    [("草地上的猫", [0, 2]), ("一只猫头鹰", [1]), ("ネコ", [3]), ("犬", []), ("红色SUV", [4])],
)
def test_scripts_without_spaces_match_by_parts(prompt, images):
    captions = ["草地上的狗", "猫头鹰", "草地上的白猫", "ネコとイヌ", "红色的SUVs"]
    assert find_subject(captions, [prompt]).images.tolist() == images


def test_words_that_every_caption_has_select_all():
    assert find_subject(["a dog", "a dog"], ["dog"]).images.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("plural", "wanted"),
    [
        ("cars", "car"),
        ("cherries", "cherry"),
        ("boxes", "box"),
        ("torches", "torch"),
        ("tomatoes", "tomato"),
        ("buses", "buse"),  # folded alike on both sides only if the caption has the plural too
        ("octopus", "octopus"),
        ("grass", "grass"),
        ("bus", "bus"),
        ("ties", "tie"),
        ("häuser", "häuser"),
        ("90s", "90s"),
    ],
)
def test_english_plurals_fold(plural, wanted):
    assert singular(plural) == wanted


@given(st.lists(st.text(max_size=30), max_size=8), st.text(max_size=30))
def test_it_agrees_with_a_plain_sum_of_weights(captions, prompt):
    """Slow and obvious: weigh every caption by itself."""
    found = find_subject(captions, [prompt])
    sets = [set(fold(caption)) for caption in captions]
    weights = {}
    for word in set(fold(prompt)):
        count = sum(word in words for words in sets)
        weights[word] = float(np.log(len(captions) / count)) if count else 0.0
    heaviest = max(weights.values(), default=0.0)
    sums = [
        sum(weights[w] for w in words & weights.keys() if weights[w] >= heaviest / 2)
        for words in sets
    ]
    if heaviest > 0:
        best = max(sums)
        assert found.images.tolist() == [i for i, s in enumerate(sums) if np.isclose(s, best)]
    assert all(word in weights for word in found.words)
