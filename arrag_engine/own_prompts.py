"""Prompts of which a model is expected to know every word: to see what it draws by itself."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from .errors import InputError
from .prompt import PromptEncoder

THINGS = (
    *("airplane", "apple", "balloon", "banana", "bear", "bed", "bench", "bird", "boat", "book"),
    *("bottle", "bowl", "bus", "butterfly", "cake", "car", "carrot", "castle", "cat", "chair"),
    *("clock", "cloud", "cow", "cup", "dog", "donut", "duck", "elephant", "fish", "flower"),
    *("frog", "giraffe", "guitar", "hat", "horse", "house", "key", "lamp", "lion", "moon"),
    *("mountain", "mushroom", "orange", "owl", "penguin", "pizza", "rabbit", "rocket", "sheep"),
    *("ship", "shoe", "star", "sunflower", "table", "teapot", "train", "tree", "truck", "turtle"),
    *("umbrella", "vase", "whale", "window", "zebra"),
)
"""Of everyday prompts, for tokenizers that represent every word."""
COLOURS = (
    *("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"),
    *("gray", "grey"),
)
COUNTS = ("two", "three", "four")
PARTICLES = (
    *("a", "an", "the", "and", "or", "of", "on", "in", "at", "to", "with", "by", "from", "for"),
    *("above", "below", "left", "right", "under", "over", "behind", "beside", "near", "background"),
)
"""Words of a vocabulary that name nothing which could be drawn alone."""
TRIES = 20
"""Prompts made up for each that is wanted, before the same one is taken again."""


@dataclass(frozen=True)
class Words:
    """What prompts are made of; where there is something plural, its singular is there too."""

    singular: list[str]
    plural: list[str]
    colours: list[str]
    counts: list[str]


def own_prompts(encoder: PromptEncoder, count: int, seed: int) -> list[str]:
    """`count` short prompts whose every word the tokenizer knows; the same for the same seed.

    Of a word-level tokenizer the words are its vocabulary: what the model was trained on. Others
    represent every word, so the things are everyday ones. A prompt comes twice only when there
    are too few words.

    Raises:
        InputError: The tokenizer knows no word that names a thing.
    """
    rng = np.random.default_rng(seed)
    things = [w for w in _vocabulary(encoder) or THINGS if not encoder.encode(w).unknown]
    if not things:
        raise InputError("the tokenizer knows no words to draw pictures of; pass known pictures")
    words = _sorted_words(encoder, things)
    found: dict[str, None] = {}
    for _ in range(count * TRIES):
        if len(found) == count:
            break
        prompt = _made_up(rng, words)
        if not encoder.encode(prompt).unknown:
            found[prompt] = None
    prompts = list(found) or things
    return [prompts[i % len(prompts)] for i in range(count)]


def _vocabulary(encoder: PromptEncoder) -> list[str]:
    """Words of a word-level tokenizer that may name a thing; none of another tokenizer."""
    facts = json.loads(encoder.tokenizer.to_str())
    if facts["model"]["type"] != "WordLevel":
        return []
    special = {token["content"] for token in facts["added_tokens"]}
    others = {*special, *COLOURS, *COUNTS, *PARTICLES}
    words = (word for word in facts["model"]["vocab"] if word.isalpha())
    return sorted(word for word in words if word.lower() not in others)


def _sorted_words(encoder: PromptEncoder, things: list[str]) -> Words:
    plural = [word for word in things if _is_plural(word, things)]
    singular = [word for word in things if word not in plural]
    colours, counts = (
        [word for word in words if not encoder.encode(word).unknown] for words in (COLOURS, COUNTS)
    )
    return Words(singular, plural, colours, counts)


def _made_up(rng: np.random.Generator, words: Words) -> str:
    """One thing, two things, one with a colour, or several of one."""

    def pick(words: list[str]) -> str:
        return words[int(rng.integers(len(words)))]

    kinds = ["one", "two"]
    kinds += ["coloured"] if words.colours else []
    kinds += ["several"] if words.plural and words.counts else []
    kind, thing = pick(kinds), _with_article(pick(words.singular))
    if kind == "several":
        return f"{pick(words.counts)} {pick(words.plural)}"
    if kind == "coloured":
        return _with_article(f"{pick(words.colours)} {pick(words.singular)}")
    return thing if kind == "one" else f"{thing} and {_with_article(pick(words.singular))}"


def _is_plural(word: str, things: list[str]) -> bool:
    """Whether an English plural whose singular is there too."""
    stems = {word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ies") + "y"}
    return word.endswith("s") and bool((stems - {word}) & set(things))


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
