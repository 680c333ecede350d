"""From captions to ids."""

import json

import pytest
from tokenizers import Tokenizer, processors

from arrag_engine.errors import InputError
from arrag_engine.models.janus.prompt import BEGIN_OF_IMAGE, BEGIN_OF_SENTENCE, PAD, PromptEncoder
from tests.tiny import tiny_tokenizer

IDS = {"unk": 0, "bos": 1, "pad": 2, "user": 3, "boi": 4, "assistant": 5}
A, RED, CAR, TWO, APPLES, COLON = range(6, 12)


@pytest.fixture(scope="module")
def encoder():
    return PromptEncoder(tiny_tokenizer())


def test_the_special_tokens_are_spelt_as_in_the_published_tokenizer():
    """Full-width bars and low blocks, which look like other characters."""
    assert BEGIN_OF_SENTENCE == "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
    assert PAD == "<\uff5c\u2581pad\u2581\uff5c>"
    assert BEGIN_OF_IMAGE == "<begin_of_image>"


def test_a_caption_stands_in_the_template(encoder):
    prompt = encoder.encode("two red apples")
    wanted = [IDS["bos"], IDS["user"], COLON, TWO, RED, APPLES, IDS["assistant"], COLON, IDS["boi"]]
    assert prompt.ids == wanted
    assert prompt.unconditional[1:-1] == [IDS["pad"]] * (len(prompt.ids) - 2)
    assert prompt.unknown == []


def test_the_template_keeps_its_line_breaks():
    seen = []

    class Spy:
        def encode(self, text, add_special_tokens):
            seen.append((text, add_special_tokens))
            return Tokenizer.from_str(tiny_tokenizer()).encode("red")

        def token_to_id(self, token):
            return 0

    encoder = PromptEncoder(tiny_tokenizer())
    encoder.tokenizer = Spy()
    encoder.encode("a {red} car\n")
    assert seen[0] == ("<|User|>: a {red} car\n\n\n<|Assistant|>:", False)
    assert {special for _, special in seen} == {False}


def test_what_a_tokenizer_adds_by_itself_is_not_added():
    tokenizer = Tokenizer.from_str(tiny_tokenizer())
    special = [(BEGIN_OF_SENTENCE, IDS["bos"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN_OF_SENTENCE} $A {BEGIN_OF_SENTENCE}", special_tokens=special
    )
    prompt = PromptEncoder(tokenizer.to_str()).encode("red")
    assert prompt.ids.count(IDS["bos"]) == 1


def test_unknown_words_are_named_once_in_order(encoder):
    prompt = encoder.encode("a blue car, two BLUE cats and é ☃ 🍎🍎")
    assert prompt.unknown == ["blue", ",", "BLUE", "cats", "and", "é", "☃", "🍎🍎"]
    assert prompt.ids.count(IDS["unk"]) == 8


def test_special_tokens_in_a_caption_do_not_move_the_ends(encoder):
    prompt = encoder.encode(f"red {BEGIN_OF_IMAGE} {PAD} car")
    assert (prompt.ids[0], prompt.ids[-1]) == (IDS["bos"], IDS["boi"])
    assert prompt.unknown == []


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\u3000"])
def test_an_empty_prompt_is_refused(encoder, text):
    with pytest.raises(InputError, match="the prompt is empty"):
        encoder.encode(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("apples " * 10_000, "70000 characters, at most 20000"),
        ("a " * 10_000, "10006 tokens, at most 1024"),
        ("a " * 1019, "1025 tokens, at most 1024"),
    ],
    ids=["ten thousand words", "ten thousand short words", "one word too many"],
)
def test_a_prompt_too_long_is_refused_with_both_numbers(encoder, text, message):
    with pytest.raises(InputError, match=message):
        encoder.encode(text)


def test_the_longest_prompt_is_taken(encoder):
    assert len(encoder.encode("a " * 1018).ids) == 1024


@pytest.mark.parametrize("text", ["\ud800", "red \udcff car"])
def test_half_characters_are_refused(encoder, text):
    with pytest.raises(InputError, match="incomplete character"):
        encoder.encode(text)


@pytest.mark.parametrize("token", [BEGIN_OF_SENTENCE, PAD, BEGIN_OF_IMAGE])
def test_a_tokenizer_of_another_model_is_refused(token):
    other = tiny_tokenizer().replace(token, "<other>")
    with pytest.raises(InputError, match=r"has no token <.*use the tokenizer\.json of a Janus-Pro"):
        PromptEncoder(other)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "x" * 1000])
def test_what_is_no_tokenizer_is_refused_briefly(text):
    with pytest.raises(InputError, match="the tokenizer cannot be read") as caught:
        PromptEncoder(text)
    assert len(str(caught.value)) < 250


def with_entries(**entries):
    """The tiny tokenizer with entries of its JSON replaced."""
    return json.dumps(json.loads(tiny_tokenizer()) | entries)


def padding(strategy):
    return {
        **{"strategy": strategy, "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 2, "pad_type_id": 0, "pad_token": PAD},
    }


@pytest.mark.parametrize("length", [64, 2**40, 2**62], ids=["some", "memory", "panic"])
def test_a_caption_is_not_filled_up_whatever_the_tokenizer_asks_for(encoder, length):
    """The library ends the whole process where it gets no memory to fill."""
    padded = PromptEncoder(with_entries(padding=padding({"Fixed": length})))
    assert padded.encode("red").ids == encoder.encode("red").ids


def test_a_caption_is_not_cut_off_whatever_the_tokenizer_asks_for(encoder):
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    cut = PromptEncoder(with_entries(truncation=truncation))
    assert cut.encode("two red apples").ids == encoder.encode("two red apples").ids


def test_a_tokenizer_that_fails_at_encoding_is_refused(encoder):
    vocab = {word: i for word, i in encoder.tokenizer.get_vocab().items() if word != "<unk>"}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<none>"}
    broken = PromptEncoder(with_entries(model=model))
    for use in (lambda: broken.encode("a novel word"), lambda: broken.has_unknown):
        with pytest.raises(InputError, match=r"does not work \(WordLevel error: Missing"):
            use()


def test_a_panic_of_the_library_is_refused(encoder, monkeypatch):
    class Panic(BaseException):
        pass

    class Panicking:
        def encode(self, text, add_special_tokens):
            raise Panic("capacity overflow")

    broken = PromptEncoder(tiny_tokenizer())
    monkeypatch.setattr(broken, "tokenizer", Panicking())
    with pytest.raises(InputError, match=r"does not work \(capacity overflow\)"):
        broken.encode("red")


def test_an_interrupt_passes(monkeypatch):
    class Interrupted:
        def encode(self, text, add_special_tokens):
            raise KeyboardInterrupt

    encoder = PromptEncoder(tiny_tokenizer())
    monkeypatch.setattr(encoder, "tokenizer", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        encoder.encode("red")


@pytest.mark.parametrize("size", [2, 6, 11])
def test_ids_that_the_model_lacks_are_refused(size):
    encoder = PromptEncoder(tiny_tokenizer(), vocab_size=size)
    with pytest.raises(InputError, match=rf"makes the id \d+, the model has {size} ids; use the"):
        encoder.encode("red colon :")
    assert PromptEncoder(tiny_tokenizer(), vocab_size=12).encode("red :").ids


def replacing(times):
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaa"}
    return with_entries(normalizer={"type": "Sequence", "normalizers": [step] * times})


def test_a_tokenizer_whose_replacements_multiply_is_refused():
    """Fourteen of them make 4 trillion letters of one."""
    assert PromptEncoder(replacing(3)).encode("a").ids
    with pytest.raises(InputError, match="replace a letter by more than 1000 letters; use the"):
        PromptEncoder(replacing(14))


def test_a_search_without_end_is_refused():
    normalizer = {"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": "c"}
    with pytest.raises(InputError, match="does not work"):
        PromptEncoder(with_entries(normalizer=normalizer)).encode("a" * 500)
