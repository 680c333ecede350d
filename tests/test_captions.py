"""Captions of everyday things that a tokenizer knows."""

import pytest
import torch

from arrag_engine import shipped
from arrag_engine.captions import FORMS, THINGS, article, everyday_captions, plural
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.models.janus.prompt import PromptEncoder
from tests.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def encoder():
    return PromptEncoder(tiny_tokenizer())


@pytest.fixture(scope="module")
def pocket():
    return load_checkpoint(shipped.resolve("pocket", shipped.MODELS), torch.float32).prompt_encoder


def test_only_words_that_the_tokenizer_knows_are_used(encoder, pocket):
    found = everyday_captions(encoder, 16, 0)
    assert set(found) == {"a car", "a red car"}
    for caption in everyday_captions(pocket, 80, 0):
        assert pocket.encode(caption).unknown == []


def test_the_captions_name_every_known_thing_before_one_comes_twice(pocket):
    known = [thing for thing in THINGS if not pocket.encode(thing).unknown]
    assert len(known) == 64
    text = " ".join(everyday_captions(pocket, 80, 0)) + " "
    for thing in known:
        assert f" {thing} " in text or f" {plural(thing)} " in text, thing


def test_the_captions_have_all_forms(pocket):
    captions = everyday_captions(pocket, 2 * len(FORMS), 0)
    for words in (" and ", " background", "two ", "three "):
        assert any(words in f"{caption} " for caption in everyday_captions(pocket, 200, 0)), words
    assert len(set(captions)) == len(captions)


def test_the_seed_alone_decides(pocket):
    assert everyday_captions(pocket, 20, 1) == everyday_captions(pocket, 20, 1)
    assert everyday_captions(pocket, 20, 1) != everyday_captions(pocket, 20, 2)
    assert everyday_captions(pocket, 20, 1) == everyday_captions(pocket, 40, 1)[:20]


@pytest.mark.parametrize("caption", ["my Car at night", "two cars"])
def test_what_is_to_be_learnt_is_not_asked_for(pocket, encoder, caption):
    assert everyday_captions(encoder, 4, 0, [caption]) == []
    for found in everyday_captions(pocket, 80, 0, [caption]):
        assert not {"car", "cars"} & set(found.split())


def test_a_tokenizer_of_other_words_gives_its_own(encoder, monkeypatch):
    monkeypatch.setattr("arrag_engine.captions.THINGS", ["xylophone"])
    found = everyday_captions(encoder, 12, 0)
    assert {"two", "apples"} <= {word for caption in found for word in caption.split()}
    assert all(encoder.encode(caption).unknown == [] for caption in found)


@pytest.mark.parametrize(
    ("thing", "several"),
    [
        ("car", "cars"), ("bus", "buses"), ("fox", "foxes"), ("cherry", "cherries"),
        ("key", "keys"), ("cactus", "cacti"), ("torch", "torches"),
    ],
)  # fmt: skip
def test_plurals(thing, several):
    assert plural(thing) == several


def test_articles():
    assert [article(word) for word in ("owl", "red owl", "orange")] == [
        "an owl", "a red owl", "an orange",
    ]  # fmt: skip
