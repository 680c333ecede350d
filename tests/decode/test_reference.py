"""The fast loop against the loop of the paper."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from arrag_engine.decode import Kept, Recipe, draw_pictures
from arrag_engine.decode.reference import draw_reference
from arrag_engine.faid import Faid
from arrag_engine.grid import Grid
from arrag_engine.index import KeySpec
from arrag_engine.retrieval import layers_of, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling
from tests import slow
from tests.decode.test_raster_faid import full_adapter
from tests.tiny import BLANK, PAD_ID, PROMPT, tiny_config, tiny_index, tiny_model

CPU = torch.device("cpu")
PLAIN = Sampling(cfg=3.0)
RETRIEVALS = {
    "none": None,
    "a little": RetrievalOptions(0.2, 0.5, 9),
    "much": RetrievalOptions(0.8, 0.1, 5, "sum", 0.9),
    "all": RetrievalOptions(1.0, 1.0, 30),
}


NEGATIVES = {
    "as long": [1, 8, 9, 10, 4],
    "long": [1, *range(5, 37), 4],
    "one id": [4],
}


@pytest.fixture(scope="module")
def small():
    return tiny_model(3, replace(tiny_config(), grid=Grid(4, 5)))


def recipe_of(model, sampling, options, strength=0.0, spec=None, kept=None):
    retriever, faid = None, None
    if options is not None:
        index = tiny_index(model, spec=spec)
        retriever = make_retriever(index, model.config.grid, model.vq.codebook(CPU), options)
    if strength:
        faid = Faid(full_adapter(model), strength, candidates=3)
    return Recipe(PROMPT, BLANK, sampling, layers_of(retriever), faid, kept)


@pytest.mark.parametrize("sampling", [PLAIN, Sampling(1.0, 0.8, 20, 0.9), Sampling(3.0, 0)])
@pytest.mark.parametrize("options", RETRIEVALS.values(), ids=RETRIEVALS)
@pytest.mark.parametrize("strength", [0.0, 1.0, 1.5])
def test_a_fast_picture_is_the_reference_picture(small, sampling, options, strength):
    recipe = recipe_of(small, sampling, options, strength)
    wanted = [draw_reference(small, recipe, seed).tolist() for seed in (7, 8)]
    for window in (1, 3, 20):
        found = draw_pictures(small, recipe, [7, 8], window).tokens.flatten(1)
        assert found.tolist() == wanted


@pytest.mark.parametrize("negative", NEGATIVES.values(), ids=NEGATIVES)
@pytest.mark.parametrize("options", [None, RETRIEVALS["much"]], ids=["plain", "retrieving"])
@pytest.mark.parametrize("strength", [0.0, 1.5])
def test_a_negative_prompt_of_any_length_makes_the_reference_picture(
    small, negative, options, strength
):
    """In any window and batch."""
    recipe = replace(recipe_of(small, PLAIN, options, strength), unconditional=negative)
    wanted = [draw_reference(small, recipe, seed).tolist() for seed in (7, 8)]
    for window in (1, 6):
        found = draw_pictures(small, recipe, [7, 8], window).tokens.flatten(1)
        assert found.tolist() == wanted
        alone = draw_pictures(small, recipe, [8], window).tokens.flatten()
        assert alone.tolist() == wanted[1]


@pytest.mark.parametrize(
    "spec", [KeySpec("causal-8", "zero"), KeySpec("causal-24", "zero", "codebook", 2.0)], ids=str
)
def test_keys_make_no_difference(small, spec):
    recipe = recipe_of(small, PLAIN, RETRIEVALS["much"], 1.0, spec)
    wanted = draw_reference(small, recipe, 3).tolist()
    assert draw_pictures(small, recipe, [3], 6).tokens.flatten().tolist() == wanted


def test_a_given_beginning_stands_in_both(small):
    given = np.arange(7, dtype=np.int64)
    recipe = recipe_of(small, PLAIN, RETRIEVALS["much"], 1.0, kept=Kept.first(given, 20))
    wanted = draw_reference(small, recipe, 3)
    assert np.array_equal(wanted[:7], given)
    assert draw_pictures(small, recipe, [3], 6).tokens.flatten().tolist() == wanted.tolist()


def test_the_reference_equals_a_loop_without_the_engine(small):
    """`slow` works everything out by itself, from keys to blenders."""
    index, options = tiny_index(small), RetrievalOptions(0.5, 0.4, 9)
    recipe = recipe_of(small, PLAIN, options)
    offsets = ((-1, -1), (-1, 0), (-1, 1), (0, -1))
    wanted = slow.picture(small, PROMPT, PAD_ID, PLAIN, 7, index, offsets, options)
    assert draw_reference(small, recipe, 7).tolist() == wanted


@pytest.mark.parametrize("negative", NEGATIVES.values(), ids=NEGATIVES)
def test_the_reference_with_a_negative_prompt_equals_a_loop_without_the_engine(small, negative):
    recipe = replace(recipe_of(small, PLAIN, None), unconditional=negative)
    wanted = slow.picture(small, PROMPT, PAD_ID, PLAIN, 7, negative=negative)
    assert draw_reference(small, recipe, 7).tolist() == wanted
