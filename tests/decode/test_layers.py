"""Several layers in one drawing: the fast loops against the loop of the paper, and the law of the
mixture."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from arrag_engine.decode import KeptPasses, Recipe, draw_pictures
from arrag_engine.decode.reference import draw_reference
from arrag_engine.faid import Faid
from arrag_engine.grid import NEIGHBORHOODS, Grid
from arrag_engine.index import KeySpec
from arrag_engine.retrieval import Asked, Layers, Steering, copied_regions, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling
from tests import slow
from tests.decode.test_raster_faid import full_adapter
from tests.tiny import BLANK, PAD_ID, PROMPT, tiny_config, tiny_index, tiny_model

CPU = torch.device("cpu")
LEFT = np.array([[1.0, 1.0, 0.0, 0.0, 0.0]])


def layer(model, weight=0.4, seed=0, steering=None, spec=None, images=5, **options):
    index = tiny_index(model, images, seed, spec)
    used = RetrievalOptions(weight, **{"temperature": 0.5, "neighbours": 9} | options)
    codebook = model.vq.codebook(CPU)
    return make_retriever(index, model.grid, codebook, used, steering=steering)


def small_model(height=4, width=5, codes=64):
    config = tiny_config()
    config = replace(config, grid=Grid(height, width), vq=replace(config.vq, codebook_size=codes))
    return tiny_model(3, config)


@pytest.fixture(scope="module")
def small():
    return small_model()


LAYERS = {
    "two": lambda m: [layer(m), layer(m, 0.5, 1, spec=KeySpec("causal-8", "zero"))],
    "apart": lambda m: [
        layer(m, 1.0, steering=Steering(LEFT)),
        layer(m, 0.9, 1, Steering(1 - LEFT), neighbours=3),
    ],
    "curves": lambda m: [
        layer(m, 0.6, steering=Steering(start=0.2, end=0.8, curve="ease in")),
        layer(m, 0.4, 1, Steering(curve="rows", rows=[1, 0.2]), duplicates="sum"),
    ],
    "near": lambda m: [layer(m, 0.7, steering=Steering(max_distance=5.0)), layer(m, 0.3, 2)],
    "copies": lambda m: [
        layer(m, 0.8, steering=Steering(copy_limit=2), spec=KeySpec(borders="zero"), images=2)
    ],
}


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("sampling", [Sampling(3.0), Sampling(3.0, 0)], ids=["noise", "greedy"])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_fast_picture_is_the_reference_picture(small, layers, sampling, strength):
    faid = Faid(full_adapter(small), strength, candidates=3) if strength else None
    recipe = Recipe(PROMPT, BLANK, sampling, layers(small), faid)
    wanted = [draw_reference(small, recipe, seed).tolist() for seed in (7, 8)]
    for window, kept in ((1, None), (3, None), (20, None), (4, KeptPasses())):
        found = draw_pictures(small, recipe, [7, 8], window, kept=kept).tokens.flatten(1)
        assert found.tolist() == wanted


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_many_positions_at_once_are_each_position_alone(small, layers):
    used, size, rng = Layers(tuple(layers(small))), small.grid.size, np.random.default_rng(4)
    tokens, known = rng.integers(0, small.vocab, size), rng.random(size) < 0.5
    positions = np.flatnonzero(used.informed(known))
    asked = [Asked(tokens, positions, known)]
    found = used.propose(asked)
    totals, proposed = used.proposed(used.find(asked), positions, small.vocab, CPU)
    for i, position in enumerate(positions):
        total, alone = used.mixture(found[i], position, small.vocab)
        assert totals[i] == total
        assert torch.allclose(proposed[i], total * alone, rtol=1e-6, atol=0)
    assert len({*totals}) > 1 or totals[0] > 0


@pytest.mark.parametrize("window", [1, 2])
def test_components_are_drawn_as_often_as_their_weights_say(window):
    """Every two-token picture as often as (1 - λ1 - λ2) p_model + λ1 p_1 + λ2 p_2 says."""
    model = small_model(1, 2, 8)
    layers = [
        layer(model, 0.35, 0, spec=KeySpec(borders="zero"), images=12, neighbours=5),
        layer(model, 0.25, 1, spec=KeySpec(borders="zero"), images=12, neighbours=4),
    ]
    sampling, draws = Sampling(cfg=2, temperature=3), 2500
    counts, chosen = np.zeros((8, 8)), np.zeros(3)
    for start in range(0, draws, 500):
        recipe = Recipe(PROMPT, BLANK, sampling, layers)
        drawing = draw_pictures(model, recipe, range(start, start + 500), window)
        np.add.at(counts, tuple(drawing.tokens.view(-1, 2).T.numpy()), 1)
        chosen += np.bincount([trace.component[1] + 1 for trace in drawing.traces], minlength=3)
    codebook = model.vq.quantize.rows(CPU).numpy()
    wanted = np.zeros((8, 8))
    first = slow.p_model(model, PROMPT, PAD_ID, [], sampling)
    for x in range(8):
        p = 0.4 * slow.p_model(model, PROMPT, PAD_ID, [x], sampling)
        for one in layers:
            offsets = NEIGHBORHOODS["causal-4"]
            q = slow.p_retrieved(one.source, codebook, offsets, [x], 1, one.options)
            p += one.options.weight * q
        wanted[x] = first[x] * p * draws
    likely = wanted > 5
    found = [*counts[likely], counts[~likely].sum()]
    assert stats.chisquare(found, [*wanted[likely], wanted[~likely].sum()]).pvalue > 1e-3
    assert stats.chisquare(chosen, draws * np.array([0.4, 0.35, 0.25])).pvalue > 1e-3


def test_a_second_layer_leaves_tokens_alone_where_it_does_not_work(small):
    """In raster order, what comes before the layer's span is the picture without it."""
    one = layer(small)
    late = layer(small, 0.6, 1, Steering(start=0.5))
    alone = draw_pictures(small, Recipe(PROMPT, BLANK, Sampling(2.0), [one]), [1, 2, 3])
    both = draw_pictures(small, Recipe(PROMPT, BLANK, Sampling(2.0), [one, late]), [1, 2, 3])
    assert torch.equal(alone.tokens.flatten(1)[:, :10], both.tokens.flatten(1)[:, :10])
    assert not torch.equal(alone.tokens, both.tokens)
    for trace in both.traces:
        assert (trace.component[:10] < 1).all()
        assert not trace.layers[1].hits.found()[:10].any()
        assert np.array_equal(trace.weight[:10], trace.layers[0].weight[:10])


def test_an_idle_layer_changes_nothing(small):
    one, idle = layer(small), layer(small, 0.0, 1)
    alone = draw_pictures(small, Recipe(PROMPT, BLANK, Sampling(2.0), [one]), [1, 2])
    both = draw_pictures(small, Recipe(PROMPT, BLANK, Sampling(2.0), [idle, one]), [1, 2])
    assert torch.equal(alone.tokens, both.tokens)
    assert alone.passes == both.passes


def test_patches_that_are_too_far_are_not_used(small):
    steering = Steering(max_distance=4.5)
    recipe = Recipe(PROMPT, BLANK, Sampling(2.0), [layer(small, 1.0, steering=steering)])
    near = 0
    for trace in draw_pictures(small, recipe, range(4)).traces:
        [one] = trace.layers
        found = one.hits.found()
        assert (one.hits.distances[found] <= 4.5).all()
        assert np.array_equal(one.weight > 0, found.any(axis=1))
        assert (trace.component[~found.any(axis=1)] == -1).all()
        near += found.any(axis=1).sum()
    assert 0 < near < 4 * one.source.active.size


def test_a_copy_limit_bounds_what_retrieval_copies_from_an_index_of_one_picture(small):
    spec = KeySpec("causal-4", "zero", "codebook")

    def largest(limit):
        steering = Steering(copy_limit=limit)
        one = layer(small, 1.0, steering=steering, spec=spec, images=1, neighbours=20)
        drawing = draw_pictures(small, Recipe(PROMPT, BLANK, Sampling(1.0), [one]), range(6))
        library, sizes = one.source.tokens, []
        for tokens in drawing.tokens.flatten(1).numpy():
            regions = copied_regions(small.grid, library, tokens, [0], 0)
            sizes.append(max((len(region.positions) for region in regions), default=0))
        return max(sizes)

    assert largest(0) > 6
    assert largest(3) <= 4  # the model may draw one token more of the picture by itself


def test_responsibilities_are_those_of_bayes(small):
    layers = [layer(small, 0.3), layer(small, 0.4, 1, spec=KeySpec("causal-8", "zero"))]
    sampling = Sampling(2.0)
    [trace] = draw_pictures(small, Recipe(PROMPT, BLANK, sampling, layers), [5]).traces
    codebook = small.vq.quantize.rows(CPU).numpy()
    tokens = trace.tokens.tolist()
    for i in range(20):
        p = slow.p_model(small, PROMPT, PAD_ID, tokens[:i], sampling)[tokens[i]]
        joint = []
        for one in layers:
            offsets = NEIGHBORHOODS[one.source.spec.neighborhood]
            q = slow.p_retrieved(one.source, codebook, offsets, tokens[:i], i, one.options)
            joint.append((0.0, 0.0) if q is None else (one.options.weight, q[tokens[i]]))
        total = sum(w * q for w, q in joint) + (1 - sum(w for w, _ in joint)) * p
        for j, (w, q) in enumerate(joint):
            assert trace.responsibilities[j, i] == pytest.approx(w * q / total, abs=1e-4)


def test_what_is_owed_to_the_sources_adds_up_to_what_is_owed_to_their_layer(small):
    layers = [layer(small, 0.5, duplicates="sum"), layer(small, 0.4, 1)]
    [trace] = draw_pictures(small, Recipe(PROMPT, BLANK, Sampling(2.0), layers), [5]).traces
    for j, one in enumerate(trace.layers):
        shares = trace.source_shares(j)
        assert shares.shape == (5,)
        assert shares.sum() == pytest.approx(trace.responsibilities[j].mean())
        for position in np.flatnonzero(one.weight):
            own = one.hits.codes[position] == trace.tokens[position]
            assert one.shares[position][own].sum() == pytest.approx(
                one.p_retrieval[position], abs=1e-6
            )
