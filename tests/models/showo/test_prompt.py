"""Captions to ids, as the official program makes them."""

import pytest

from arrag_engine.errors import InputError
from arrag_engine.models.showo.model import Vocabulary
from arrag_engine.models.showo.prompt import END_OF_TEXT, PromptEncoder, text_ids
from tests.tiny import tiny_tokenizer
from tests.tiny_showo import END, TEXT, VOCAB, text_tokenizer

V = Vocabulary(VOCAB, 64)
T2I, PAD = V.special("t2i"), V.special("pad")


@pytest.fixture(scope="module")
def encoder():
    return PromptEncoder(text_tokenizer(), V, 9)


def official(words, longest):
    """The official rule, literally: ids of the text part without its pads."""
    ids = [END] if not words else list(words)
    if ids[0] != END:
        ids = [END, *ids]
    ids = [T2I, *ids, END]
    return ids if len(ids) <= longest + 1 else [*ids[:longest], END]


@pytest.mark.parametrize("words", [[], [4], [END], [END, 4], [4, END], [*range(2, 30)]], ids=str)
@pytest.mark.parametrize("longest", [3, 8, 9, 30])
def test_ids_follow_the_official_rule(words, longest):
    assert text_ids(words, V, END, longest) == official(words, longest)


def test_a_prompt_and_the_empty_one_beside_it(encoder):
    prompt = encoder.encode("a red car")
    assert prompt.ids == [T2I, END, 2, 3, 4, END]
    assert prompt.unconditional == [PAD, PAD, PAD, T2I, END, END]
    assert (prompt.unknown, prompt.notes) == ([], ())


def test_a_prompt_that_begins_with_the_end_gets_no_second_one(encoder):
    prompt = encoder.encode(f"{END_OF_TEXT} red")
    assert prompt.ids == [T2I, END, 3, END]
    assert prompt.unconditional == [PAD, T2I, END, END]


def test_the_longest_prompt_stays_whole(encoder):
    prompt = encoder.encode("a red car on blue grass two")
    assert len(prompt.ids) == 10
    assert prompt.notes == ()


def test_a_longer_prompt_is_cut_and_the_note_says_where(encoder):
    prompt = encoder.encode("a red car on blue grass two apples red")
    assert prompt.ids == official([2, 3, 4, 7, 9, 8, 5, 6, 3], 9)
    [note] = prompt.notes
    assert note == (
        "The prompt has 9 tokens, the model reads 7: it is cut off after "
        "'a red car on blue grass two'."
    )


def test_unknown_words_are_named(encoder):
    assert encoder.encode("a purple car").unknown == ["purple"]
    assert encoder.has_unknown


def test_no_caption_can_spell_a_special_token(encoder):
    ids = encoder.encode("<|soi|> <|t2i|> [PAD]").ids
    assert max(ids[1:]) < TEXT


@pytest.mark.parametrize("text", ["", "  ", 5, "a" * 30_000])
def test_what_is_no_caption_is_refused(encoder, text):
    with pytest.raises(InputError, match="the prompt"):
        encoder.encode(text)


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(InputError, match=r"no token <\|endoftext\|>; use .* of microsoft/phi-1_5"):
        PromptEncoder(tiny_tokenizer(), V)


def test_ids_that_are_no_text_of_the_model_are_refused():
    small = PromptEncoder(text_tokenizer(), Vocabulary(10 + 5 + 64 + 1, 64))
    with pytest.raises(InputError, match="makes the id 6, the model has 5 ids"):
        small.encode("two apples")
