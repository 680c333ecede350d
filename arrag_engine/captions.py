"""Captions of everyday things, for pictures that training rehearses and calibration protects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from .models.base import PromptEncoder


def words(text: str) -> list[str]:
    return text.split()


def article(words: str) -> str:
    return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"


THINGS = words("""
airplane anchor apple axe backpack ball balloon banana basket bear bed bee bell bench bicycle bird
boat book boot bottle bowl box bread bridge broom bucket burger bus butterfly cactus cake camel
camera candle car carrot castle cat chair cheese cherry chicken church clock cloud coat computer
cookie couch cow crab crown cucumber cup dinosaur dog dolphin donkey donut door dragon dress drum
duck eagle egg elephant fence fish flower fork fountain fox frog ghost gift giraffe goat guitar
hammer hat heart helicopter horse house island jacket kangaroo key kite koala lamp laptop lemon
lighthouse lion lizard llama lobster mirror monkey moon motorcycle mountain mushroom octopus owl
painting palace panda parrot peacock pear penguin phone piano pig pineapple pizza potato pumpkin
rabbit rainbow ring river robot rocket rose sandwich shark sheep ship shirt shoe snail snake
snowman spider spoon squirrel star statue strawberry street suitcase sun sunflower swan sword table
taxi teapot telephone television temple tent tiger tomato tower tractor train tree trophy truck
trumpet tulip turtle umbrella vase violin volcano watermelon whale windmill zebra
""")
COLOURS = words("red orange yellow green blue purple pink black white gray")
COUNTS = words("two three four")
RELATIONS = ("left of", "right of", "above", "below")
PLACES = (
    "on the beach", "in the desert", "at night", "in the snow", "on the grass", "at sunset",
    "in a forest", "in a city", "on a table", "in the rain", "by a river",
    *(f"on {article(colour)} background" for colour in COLOURS),
)  # fmt: skip
FORMS = (
    "{a}", "{a} {place}", "{a_coloured}", "{count} {plural}", "{a} and {b}", "{a} {relation} {b}",
    "{a_coloured} and {b_coloured}", "{a_coloured} {place}",
)  # fmt: skip
IRREGULAR = {"cactus": "cacti", "fish": "fish", "sheep": "sheep", "snowman": "snowmen"}


def everyday_captions(
    encoder: PromptEncoder, count: int, seed: int, left_out: Sequence[str] = ()
) -> list[str]:
    """Captions of things, colours, counts and places, made of words in the tokenizer's vocabulary.

    A tokenizer of whole words maps all others to one unknown token, so its vocabulary is what the
    model was trained on; a tokenizer of word pieces covers every word, and THINGS are what any
    such model was trained on. Where no listed thing is in the vocabulary, its own words are the
    captions; an empty vocabulary gives none.

    Args:
        left_out: Captions of new subjects. A thing that they name is in no caption, because the
            model's present drawing of it is not to be kept. The result may be empty.
    """
    listed = [thing for thing in THINGS if knows(encoder, thing)] or vocabulary(encoder)
    named = {word for caption in left_out for word in re.findall(r"\w+", caption.lower())}
    things = [t for t in listed if not {t.lower(), plural(t)} & named]
    if not things:
        return []
    rng = np.random.default_rng((seed, 3))
    turns = endless(things, rng)
    return [compose(encoder, FORMS[i % len(FORMS)], turns, rng) for i in range(count)]


def knows(encoder: PromptEncoder, text: str) -> bool:
    return not encoder.encode(text).unknown


def vocabulary(encoder: PromptEncoder) -> list[str]:
    """Words of the tokenizer."""
    return sorted(word for word in encoder.tokenizer.get_vocab() if word.isalpha())


def endless(things: list[str], rng: np.random.Generator) -> Iterator[str]:
    """All things in a random order, then all again in another."""
    while True:
        yield from (things[i] for i in rng.permutation(len(things)))


def compose(
    encoder: PromptEncoder, form: str, turns: Iterator[str], rng: np.random.Generator
) -> str:
    """A caption of a form; of the simplest form, or the bare word, if a word is unknown."""
    a, colours = next(turns), rng.permutation(usable(encoder, COLOURS))
    colour, other = colours[0], colours[-1]
    parts = {"a": article(a), "a_coloured": article(f"{colour} {a}"), "plural": plural(a)}
    if "{b" in form:
        b = next(turns)
        parts |= {"b": article(b), "b_coloured": article(f"{other} {b}")}
    for name, choices in (("place", PLACES), ("count", COUNTS), ("relation", RELATIONS)):
        parts[name] = str(rng.choice(usable(encoder, choices)))
    tries = (form.format(**parts), parts["a"])
    return next((caption for caption in tries if knows(encoder, caption)), a)


def usable(encoder: PromptEncoder, choices: Sequence[str]) -> list[str]:
    """Those in the vocabulary; all if none is, and then `compose` drops the caption."""
    return [choice for choice in choices if knows(encoder, choice)] or list(choices)


def plural(thing: str) -> str:
    thing = thing.lower()
    if thing in IRREGULAR:
        return IRREGULAR[thing]
    if thing.endswith(("s", "x", "ch", "sh")):
        return f"{thing}es"
    if thing.endswith("y") and thing[-2:-1] not in "aeiou":
        return f"{thing[:-1]}ies"
    return f"{thing}s"
