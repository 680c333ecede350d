"""Kept tokens: they stay, and the picture is that of the slow loop however it is drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from arrag_engine.decode import Kept, KeptPasses, Recipe, draw_one_by_one, draw_pictures
from arrag_engine.decode.canvas import MODEL, STOOD, begin
from arrag_engine.decode.reference import draw_reference
from arrag_engine.errors import InputError
from arrag_engine.faid import Faid
from arrag_engine.grid import Grid
from arrag_engine.index import KeySpec
from arrag_engine.retrieval import Asked, Layers, QueryMaker, layers_of, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling
from tests.decode.test_raster_faid import full_adapter
from tests.tiny import BLANK, PROMPT, tiny_config, tiny_index, tiny_model

CPU = torch.device("cpu")
SIZE = 20
RING = KeySpec("ring-8", "zero", "codebook")
PLAIN, NARROW, GREEDY = Sampling(cfg=3.0), Sampling(1.0, 0.8, 20, 0.9), Sampling(3.0, 0)
WAYS = [(PLAIN, None), (PLAIN, 0.3), (NARROW, 0.8), (GREEDY, 0.3), (PLAIN, 1.0)]
"""Sampling and λ."""


def mask_of(positions):
    return np.isin(np.arange(SIZE), positions)[None]


MASKS = {
    "the first rows": mask_of(range(7)),
    "the last rows": mask_of(range(9, SIZE)),
    "all around": ~mask_of([6, 7, 11, 12]),
    "every third": mask_of(range(1, SIZE, 3)),
    "all but the first": ~mask_of([0]),
    "all but the last": ~mask_of([SIZE - 1]),
}


@pytest.fixture(scope="module")
def small():
    return tiny_model(3, replace(tiny_config(), grid=Grid(4, 5)))


@pytest.fixture(scope="module")
def adapter(small):
    return full_adapter(small)


def tokens_of(rows=1):
    return np.random.default_rng(2).integers(0, 64, (rows, SIZE))


def recipe_of(model, kept, sampling=PLAIN, weight=None, spec=RING, faid=None):
    retriever = None
    if weight is not None:
        options = RetrievalOptions(weight, 0.3, 9)
        index = tiny_index(model, spec=spec)
        retriever = make_retriever(index, model.grid, model.vq.codebook(CPU), options)
    return Recipe(PROMPT, BLANK, sampling, layers_of(retriever), faid, kept)


def assert_drawn_as_slowly(model, recipe, seeds=(7, 8)):
    """In windows, in a batch and in passes of fixed shape."""
    kept = recipe.kept
    recipes = [replace(recipe, kept=kept.of(i)) for i in range(len(seeds))]
    wanted = np.stack(
        [draw_reference(model, one, seed) for one, seed in zip(recipes, seeds, strict=True)]
    )
    assert (wanted == kept.tokens)[np.broadcast_to(kept.mask, wanted.shape)].all()
    for window, fixed in ((1, True), (3, False), (3, True), (SIZE, False)):
        passes = KeptPasses() if fixed else None
        found = draw_pictures(model, recipe, seeds, window, kept=passes)
        assert np.array_equal(found.tokens.flatten(1).numpy(), wanted), (window, fixed)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(("sampling", "weight"), WAYS)
def test_a_picture_is_that_of_the_slow_loop(small, mask, sampling, weight):
    assert_drawn_as_slowly(small, recipe_of(small, Kept(tokens_of(), mask), sampling, weight))


@pytest.mark.parametrize(("weight", "strength"), [(0.0, 0.5), (0.5, 1.0)])
@pytest.mark.parametrize("mask", ["the first rows", "all around"])
def test_an_adapter_draws_beside_kept_tokens(small, adapter, mask, weight, strength):
    faid = Faid(adapter, strength, candidates=3)
    kept = Kept(tokens_of(), MASKS[mask])
    assert_drawn_as_slowly(small, recipe_of(small, kept, weight=weight, faid=faid))


@pytest.mark.parametrize("semantics", ["step", "stepzero"])
@pytest.mark.parametrize("spec", [RING, KeySpec("ring-8"), KeySpec("causal-8", "zero")], ids=str)
def test_keys_and_semantics_make_no_difference(small, adapter, semantics, spec):
    kept, faid = Kept(tokens_of(), MASKS["all around"]), Faid(adapter, 1.0, 3, semantics)
    assert_drawn_as_slowly(small, recipe_of(small, kept, weight=0.6, spec=spec, faid=faid))


@pytest.mark.parametrize("weight", [None, 0.6])
def test_each_picture_of_a_batch_keeps_its_own_tokens(small, weight):
    """One of them is whole already, and the others end at different positions."""
    whole = np.ones((1, SIZE), bool)
    kept = Kept(tokens_of(3), np.concatenate([MASKS["the last rows"], MASKS["every third"], whole]))
    recipe = recipe_of(small, kept, weight=weight)
    assert_drawn_as_slowly(small, recipe, (7, 8, 9))
    together = draw_pictures(small, recipe, (7, 8, 9)).tokens
    assert torch.equal(draw_one_by_one(small, recipe, (7, 8, 9)).tokens, together)


def test_one_row_serves_all_pictures():
    kept = Kept(tokens_of(), np.concatenate([MASKS["the last rows"], MASKS["every third"]]))
    assert kept.pictures == 2
    assert np.array_equal(kept.of(1).tokens, tokens_of())
    assert np.array_equal(kept.of(1).mask, MASKS["every third"])


def test_what_is_masked_plays_no_part(small):
    """The tokens under the mask are shown until they are drawn, and decide nothing."""
    mask = MASKS["all around"]
    other = np.where(mask, tokens_of(), 63 - tokens_of())
    one, two = (
        draw_pictures(small, recipe_of(small, Kept(tokens, mask), weight=0.6), [7]).tokens
        for tokens in (tokens_of(), other)
    )
    assert torch.equal(one, two)


def test_kept_tokens_below_and_to_the_right_change_what_all_sides_find(small):
    mask = MASKS["all around"]
    after = np.arange(SIZE) > 12
    other = np.where(after, 63 - tokens_of(), tokens_of())
    for spec, changes in ((RING, True), (KeySpec("causal-8", "zero", "codebook"), False)):
        one, two = (
            draw_pictures(small, recipe_of(small, Kept(t, mask), weight=1.0, spec=spec), [7]).tokens
            for t in (tokens_of(), other)
        )
        assert torch.equal(one.flatten()[:13], two.flatten()[:13]) != changes


def test_keys_on_all_sides_need_kept_tokens(small):
    nothing = Kept(tokens_of(), np.zeros((1, SIZE), bool))
    for kept in (None, nothing):
        with pytest.raises(InputError, match="ring-8, which needs tokens that this model draws"):
            draw_pictures(small, recipe_of(small, kept, weight=0.5), [7])


def test_nothing_kept_is_nothing_changed(small):
    nothing = Kept(tokens_of(), np.zeros((1, SIZE), bool))
    spec = KeySpec("causal-8", "zero")
    one, two = (
        draw_pictures(small, recipe_of(small, kept, weight=0.5, spec=spec), [7, 8], 3).tokens
        for kept in (None, nothing)
    )
    assert torch.equal(one, two)


def test_kept_tokens_after_the_last_drawn_one_need_no_pass(small):
    calls = []
    kept = Kept(tokens_of(), MASKS["the last rows"])
    drawing = draw_pictures(
        small, recipe_of(small, kept), [7], progress=lambda n, _: calls.append(n)
    )
    assert drawing.passes == 9
    assert calls == [*range(1, 9), SIZE]
    whole = Kept(tokens_of(), np.ones((1, SIZE), bool))
    assert draw_pictures(small, recipe_of(small, whole), [7]).passes == 0


@pytest.mark.parametrize("passes", [None, KeptPasses()], ids=["exact", "fixed"])
def test_a_trace_owes_no_kept_token_to_anything(small, adapter, passes):
    kept = Kept(tokens_of(), MASKS["every third"])
    recipe = recipe_of(small, kept, weight=0.6, faid=Faid(adapter, 1.0, 3))
    [trace] = draw_pictures(small, recipe, [7], 4, kept=passes).traces
    mask = kept.mask[0]
    assert not trace.weight[mask].any()
    assert not trace.p_model[mask].any()
    assert (trace.component[mask] == STOOD).all()
    assert not trace.responsibility[mask].any()
    assert (trace.p_model[~mask] > 0).all()
    assert (trace.weight[~mask][1:] == 0.6).all()


def test_an_unknown_neighbour_moves_all_distances_alike(small):
    """Rows of keys have unit length: nearest patches and shares stay."""
    spec = KeySpec("ring-8", "skip", "codebook")
    index = tiny_index(small, spec=spec)
    maker = QueryMaker(spec, small.grid, small.vq.codebook(CPU))
    tokens, position = tokens_of()[0], np.array([7])
    known = np.arange(SIZE) < 7
    half = index.lookup(maker.queries(tokens, position, known), index.size)
    causal = index.rekeyed(KeySpec("causal-4", "skip", "codebook"))
    alone = QueryMaker(causal.spec, small.grid, small.vq.codebook(CPU))
    wanted = causal.lookup(alone.queries(tokens, position), causal.size)
    inside = np.isin(wanted.positions[0], np.flatnonzero(maker.active))
    np.testing.assert_allclose(half.distances[0], wanted.distances[0][inside] + 4, atol=1e-5)


def test_the_first_position_retrieves_nothing(small):
    """It belongs to the prompt's pass, which all pictures of a batch share."""
    kept = Kept(tokens_of(), ~mask_of([0, 6]))
    [trace] = draw_pictures(small, recipe_of(small, kept, weight=1.0), [7]).traces
    assert np.flatnonzero(trace.weight).tolist() == [6]


def test_a_position_that_knows_nothing_retrieves_nothing(small):
    """Another layer may know something there."""
    spec = KeySpec("causal-8", "zero")
    layers = [recipe_of(small, None, weight=0.5, spec=one).layers[0] for one in (RING, spec)]
    asked = Asked(tokens_of()[0], np.array([6]), mask_of([5, 12, 18])[0])
    [(one, other)] = Layers(tuple(layers)).propose([asked])
    assert one is not None
    assert other is not None
    [(one, other)] = Layers(tuple(layers)).propose([asked._replace(known=mask_of([3, 18])[0])])
    assert one is None
    assert other is not None


def test_a_proposal_holds_while_what_is_known_stays(small):
    recipe = recipe_of(small, Kept(tokens_of(), MASKS["all around"]), weight=1.0)
    [retriever], tokens = recipe.layers, tokens_of()[0]
    few, more = MASKS["all around"][0].copy(), MASKS["all around"][0].copy()
    more[7] = True
    asked = [Asked(tokens, np.array([6]), known) for known in (few, more)]
    [proposal] = retriever.propose(asked[:1])
    assert retriever.still_holds(proposal, asked[0], 6)
    assert not retriever.still_holds(proposal, asked[1], 6)


def test_a_canvas_never_waits_at_a_kept_token():
    canvas = begin(7, SIZE, Kept(tokens_of(), MASKS["every third"]))
    seen = []
    while canvas.decided < SIZE:
        seen.append(canvas.decided)
        canvas.decide(5, MODEL)
    assert seen == np.flatnonzero(~MASKS["every third"][0]).tolist()


BAD = {
    "one row": (np.zeros(SIZE, int), np.zeros(SIZE, bool), "give both a row for each picture"),
    "lengths": (np.zeros((1, 4), int), np.zeros((1, 5), bool), r"shape \[1, 4\] and a mask"),
    "floats": (np.zeros((1, 4)), np.zeros((1, 4), bool), "type float64 and a mask of type bool"),
    "no mask": (np.zeros((1, 4), int), np.zeros((1, 4), int), "give whole numbers, and true"),
    "batches": (np.zeros((2, 4), int), np.zeros((3, 4), bool), "of 2 pictures and the mask of 3"),
}


@pytest.mark.parametrize(("tokens", "mask", "said"), BAD.values(), ids=BAD)
def test_arrays_that_do_not_belong_together_are_refused(tokens, mask, said):
    with pytest.raises(InputError, match=said):
        Kept(tokens, mask)


def test_tokens_that_do_not_fit_are_refused(small):
    for kept, said in (
        (Kept.first(np.arange(3), 9), "9 tokens of a picture are given, the model draws 20"),
        (Kept(tokens_of() + 9, mask_of([0])), "the model has 0 to 63"),
        (Kept(tokens_of(3), mask_of([0])), "3 pictures are given to edit, and 2 are to be drawn"),
    ):
        with pytest.raises(InputError, match=said):
            draw_pictures(small, recipe_of(small, kept), [7, 8])


def test_keys_on_all_sides_need_kept_tokens_in_every_picture(small):
    kept = Kept(tokens_of(2), np.concatenate([mask_of([3, 4]), mask_of([])]))
    recipe = recipe_of(small, kept, weight=0.9, spec=RING)
    with pytest.raises(InputError, match="ring-8, which needs tokens that this model draws later"):
        draw_pictures(small, recipe, [7, 8])
