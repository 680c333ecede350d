"""Prompts that a model knows every word of."""

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from arrag_engine import shipped
from arrag_engine.checkpoint import open_checkpoint, read_tokenizer
from arrag_engine.errors import InputError
from arrag_engine.own_prompts import COLOURS, PARTICLES, THINGS, own_prompts
from arrag_engine.prompt import BEGIN_OF_IMAGE, BEGIN_OF_SENTENCE, PAD, UNKNOWN, PromptEncoder
from tests.tiny import tiny_tokenizer

SPECIAL = [UNKNOWN, BEGIN_OF_SENTENCE, PAD, "<|User|>", BEGIN_OF_IMAGE, "<|Assistant|>"]


def finished(tokenizer):
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return PromptEncoder(tokenizer.to_str())


def of_words(*words):
    """A word-level tokenizer."""
    vocab = {token: i for i, token in enumerate([*SPECIAL, ":", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return finished(tokenizer)


def of_bytes():
    """A tokenizer that represents every word."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    return finished(tokenizer)


@pytest.mark.parametrize("encoder", [PromptEncoder(tiny_tokenizer()), of_bytes()])
def test_every_word_is_known_and_the_seed_decides(encoder):
    prompts = own_prompts(encoder, 12, 3)
    assert len(prompts) == 12
    assert not any(encoder.encode(prompt).unknown for prompt in prompts)
    assert prompts == own_prompts(encoder, 12, 3)


def test_a_vocabulary_of_words_says_what_there_is_to_draw():
    encoder = of_words("a", "an", "and", "in", "two", "four", "red", "owl", "owls", "cactus", "bus")
    prompts = own_prompts(encoder, 17, 0)
    assert len(set(prompts)) == 17
    assert {"an owl", "a red owl", "two owls", "a cactus and an owl"} < set(prompts)
    assert not {"a owl", "a owls", "an in", "a red", "three owls"} & set(prompts)


def test_a_tokenizer_that_represents_everything_gets_everyday_things():
    encoder = of_bytes()
    prompts = own_prompts(encoder, 200, 0)
    assert len(set(prompts)) == 200
    words = {word for prompt in prompts for word in prompt.split()}
    assert words <= {*THINGS, *COLOURS, *PARTICLES}
    assert prompts != own_prompts(encoder, 200, 1)


def test_few_words_come_again():
    prompts = own_prompts(of_words("a", "red", "car"), 50, 0)
    assert len(prompts) == 50
    assert set(prompts) == {"a car", "a red car"}


def test_words_of_another_language_stand_alone():
    encoder = of_words("un", "rouge", "chat", "voiture")
    prompts = own_prompts(encoder, 6, 0)
    assert set(prompts) == {"un", "rouge", "chat", "voiture"}
    assert not any(encoder.encode(prompt).unknown for prompt in prompts)


def test_a_tokenizer_without_words_is_refused():
    with pytest.raises(InputError, match="knows no words to draw pictures of"):
        own_prompts(of_words("a", "red", "two"), 3, 0)


def test_the_shipped_model_is_asked_for_what_it_knows():
    opened = open_checkpoint(shipped.MODELS / "pocket.safetensors")
    encoder = PromptEncoder(read_tokenizer(opened.tokenizer))
    prompts = own_prompts(encoder, 64, 0)
    assert len(set(prompts)) == 64
    assert not any(encoder.encode(prompt).unknown for prompt in prompts)
