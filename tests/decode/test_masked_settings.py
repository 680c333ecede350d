"""What a user sets of retrieval in masked drawing, against plain loops over every patch."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import stats

from arrag_engine.decode import Kept, Recipe, draw_pictures
from arrag_engine.decode.masked import stays
from arrag_engine.decode.step_noise import step_noise
from arrag_engine.errors import InputError
from arrag_engine.grid import NEIGHBORHOODS, Grid, beside, neighbor_table
from arrag_engine.retrieval import Asked, Steering, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling, Schedule
from tests.tiny_showo import sign_index, tiny_showo

IDS, BLANK = [17, 1, 2, 3, 4, 1], [12, 12, 12, 17, 1, 1]
STEPS, SIZE, CODES = 5, 36, 64
TAU, NEAREST = 4.0, 12


@dataclass(frozen=True)
class Case:
    """Settings of one drawing; untouched, they are the convention of the golden numbers."""

    border_keys: str = "in"
    distances: str = "sum"
    confidence: str = "mixture"
    grow: bool = False
    start: float = 0.0
    end: float = 1.0
    curve: str = "constant"

    @property
    def options(self) -> RetrievalOptions:
        return RetrievalOptions(
            0.8, TAU, NEAREST, border_keys=self.border_keys, distances=self.distances
        )

    @property
    def steering(self) -> Steering:
        return Steering(start=self.start, end=self.end, curve=self.curve)


CASES = {
    "as the golden numbers": Case(),
    "border keys out": Case("out"),
    "mean": Case(distances="mean"),
    "both": Case("out", "mean"),
    "confidence": Case(confidence="model"),
    "growing": Case(grow=True),
    "rising": Case(curve="linear"),
    "falling": Case("out", "mean", "model", start=1.0, end=0.0, curve="ease in"),
    "a part": Case(start=0.1, end=0.5),
}


@pytest.fixture(scope="module")
def showo():
    return tiny_showo()


@pytest.fixture(scope="module")
def index():
    return sign_index(4)


def retriever_of(showo, index, case, weight=0.8):
    options = replace(case.options, weight=weight)
    return make_retriever(
        *(index, showo.grid, index.codebook, options),
        steering=case.steering,
        unknown="ignore",
        order=showo.order,
    )


def recipe_of(case, retriever=None, kept=None, steps=STEPS):
    layers = [] if retriever is None else [retriever]
    schedule = Schedule(steps, confidence=case.confidence, grow=case.grow)
    return Recipe(IDS, BLANK, Sampling(cfg=2.0), layers, None, kept, schedule)


def surroundings(codes, there, position, grid, rows):
    """The signs of each of the eight neighbours, None where there is none."""
    row, column = divmod(position, grid.width)
    for r, c in NEIGHBORHOODS["ring-8"]:
        inside = 0 <= row + r < grid.height and 0 <= column + c < grid.width
        at = (row + r) * grid.width + column + c
        yield rows[codes[at]].tolist() if inside and there[at] else None


def slow_keys(index):
    """The surroundings of every patch, and its code."""
    every = [True] * SIZE
    return [
        (list(surroundings(picture, every, i, index.grid, index.codebook)), int(picture[i]))
        for picture in index.tokens
        for i in range(SIZE)
    ]


def slow_factor(case, known):
    """What λ is multiplied by when so many tokens are known."""
    t = (known + 0.5) / SIZE
    low, high = min(case.start, case.end), max(case.start, case.end)
    if not low <= t <= high:
        return 0.0
    t = (t - low) / (high - low)
    t = 1 - t if case.end < case.start else t
    return {"constant": 1.0, "linear": t, "ease in": t * t}[case.curve]


def slow_mixture(p, keys, index, case, tokens, known, position):
    """The distribution at an unknown position, by looking at every patch."""
    query = list(surroundings(tokens, known, position, index.grid, index.codebook))
    count = sum(one is not None for one in query)
    if count == 0:
        return p
    found = []
    for number, (key, code) in enumerate(keys):
        pairs = [(one, other) for one, other in zip(query, key, strict=True) if one is not None]
        if case.border_keys == "out" and any(other is None for _, other in pairs):
            continue
        distance = 0.0
        for one, other in pairs:
            other = [0.0] * len(one) if other is None else other
            distance += sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
        found.append((distance, number, code))
    nearest = {}
    for distance, _, code in sorted(found)[:NEAREST]:
        nearest.setdefault(code, distance / (count if case.distances == "mean" else 1))
    least = min(nearest.values())
    shares = {code: math.exp(-(d - least) / TAU) for code, d in nearest.items()}
    total, weight = sum(shares.values()), 0.8 * slow_factor(case, sum(known))
    return [(1 - weight) * q + weight * shares.get(c, 0) / total for c, q in enumerate(p)]


def slow_picture(model, index, keys, case, seed):
    """One picture by plain loops."""
    tokens, known, heat = [0] * SIZE, [False] * SIZE, 1.0
    for step in range(STEPS):
        row = torch.tensor([tokens]), torch.tensor([known])
        cond, uncond = (
            model.masked_logits(model.open(torch.tensor([ids])), *row)[0] for ids in (IDS, BLANK)
        )
        p = torch.softmax(uncond + 2 * (cond - uncond), dim=-1).double().tolist()
        noise, before, sure = step_noise(seed, step, SIZE), list(tokens), []
        heat *= 1 - (step + 1) / STEPS
        for i in range(SIZE):
            chosen = float(np.finfo(np.float32).max)
            if not known[i]:
                q = slow_mixture(p[i], keys, index, case, before, known, i)
                tokens[i] = min(int((np.cumsum(q) <= noise.draw[i]).sum()), CODES - 1)
                chosen = max((p[i] if case.confidence == "model" else q)[tokens[i]], 1e-20)
            sure.append(math.log(chosen) - heat * math.log(-math.log(noise.keep[i])))
            around = surroundings(before, known, i, index.grid, index.codebook)
            if case.grow and any(known) and not known[i] and all(one is None for one in around):
                sure[-1] -= 1e6
        share = float(np.cos(np.float32((step + 1) / STEPS) * np.float32(math.pi / 2)))
        cut = sorted(sure)[max(1, min(known.count(False) - 1, math.floor(SIZE * share)))]
        known = [s >= cut for s in sure]
    return tokens


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_picture_equals_the_slow_loop(showo, index, case):
    drawing = draw_pictures(showo, recipe_of(case, retriever_of(showo, index, case)), [7])
    assert drawing.tokens.flatten().tolist() == slow_picture(
        showo, index, slow_keys(index), case, 7
    )


def test_a_growing_picture_keeps_as_many_tokens_a_step_as_any():
    """Without noise, from a corner: fewer positions lie beside known ones than a step wants."""
    known, drawn = np.zeros(144, bool), np.linspace(0.1, 0.9, 144, dtype=np.float32)
    known[0] = True
    near = beside(neighbor_table(Grid(12, 12), "ring-8"), known)
    schedule = Schedule(4, temperature=0, grow=True)
    after = stays(drawn, known, schedule, 1, None, near)
    assert after.sum() == stays(drawn, known, schedule, 1, None).sum() == 43
    assert after[near].all()


def test_untouched_settings_are_those_of_the_golden_numbers():
    """`verify` draws the group daid_proposed with them."""
    options = RetrievalOptions(0.8, TAU, NEAREST)
    assert options == Case().options
    assert (Schedule().confidence, Schedule().grow, Steering().whole) == ("mixture", False, True)


def test_every_setting_changes_the_picture(showo, index):
    drawn = {
        tuple(
            draw_pictures(showo, recipe_of(case, retriever_of(showo, index, case)), [7])
            .tokens.flatten()
            .tolist()
        )
        for case in CASES.values()
    }
    assert len(drawn) == len(CASES)


@pytest.mark.parametrize("case", [CASES["both"], CASES["falling"]], ids=["both", "falling"])
def test_a_batch_is_its_pictures_alone_and_weight_zero_is_plain(showo, index, case):
    recipe = recipe_of(case, retriever_of(showo, index, case))
    together = draw_pictures(showo, recipe, [7, 8, 9]).tokens
    for i, seed in enumerate((7, 8, 9)):
        assert torch.equal(together[i], draw_pictures(showo, recipe, [seed]).tokens[0])
    weightless = recipe_of(case, retriever_of(showo, index, case, weight=0.0))
    plain = draw_pictures(showo, recipe_of(case), [7, 8])
    assert torch.equal(draw_pictures(showo, weightless, [7, 8]).tokens, plain.tokens)


@pytest.mark.parametrize("name", ["both", "rising"])
def test_a_token_is_drawn_from_its_mixture(showo, index, name):
    """At the border of the picture, everything else being known."""
    case, position, count = CASES[name], 3, 800
    tokens = np.random.default_rng(1).integers(0, CODES, (1, SIZE))
    mask = np.arange(SIZE)[None] != position
    retriever = retriever_of(showo, index, case)
    recipe = recipe_of(case, retriever, Kept(tokens, mask), steps=1)
    drawn = draw_pictures(showo, recipe, range(count)).tokens.flatten(1)[:, position]
    row = torch.from_numpy(tokens), torch.from_numpy(mask)
    cond, uncond = (
        showo.masked_logits(showo.open(torch.tensor([ids])), *row)[0] for ids in (IDS, BLANK)
    )
    p = torch.softmax(uncond + 2 * (cond - uncond), dim=-1)[position].double().tolist()
    known = mask[0].tolist()
    wanted = slow_mixture(p, slow_keys(index), index, case, tokens[0], known, position)
    wanted = count * np.array(wanted) / np.sum(wanted)
    counts = np.bincount(drawn.numpy(), minlength=CODES)
    often = wanted >= 5
    pairs = [np.append(x[often], x[~often].sum()) for x in (counts, wanted)]
    assert stats.chisquare(*pairs).pvalue > 0.001


def test_border_keys_do_not_crowd_out_the_others(showo):
    """With two known neighbours that no patch has, a missing neighbour is nearer than a wrong
    one."""
    index = sign_index(12)
    rng = np.random.default_rng(4)
    tokens, known = rng.integers(0, CODES, SIZE), np.zeros(SIZE, bool)
    known[[7, 8, 9, 13, 15, 19, 20, 21]] = True  # all around position 14

    def border_share(case):
        [proposal] = retriever_of(showo, index, case).propose(
            [Asked(tokens, np.array([14]), known)]
        )
        row, column = np.divmod(proposal.hits.positions[0], 6)
        return np.mean((row % 5 == 0) | (column % 5 == 0))

    assert border_share(Case()) > 0.9
    assert border_share(Case("out")) == 0


def test_a_query_at_the_border_finds_patches_of_the_same_border(showo, index):
    """It knows no neighbour above it, so none needs to be there."""
    tokens, known = index.tokens[2].astype(int), np.arange(SIZE) != 3
    [proposal] = retriever_of(showo, index, Case("out")).propose(
        [Asked(tokens, np.array([3]), known)]
    )
    hits = proposal.hits
    assert (hits.distances[0, 0], hits.sources[0, 0], hits.positions[0, 0]) == (0, 2, 3)
    assert (hits.positions[0] % 6 > 0).all()
    assert (hits.positions[0] // 6 < 5).all()


def test_distances_are_means_over_the_known_neighbours(showo, index):
    tokens = index.tokens[0].astype(int)
    known = np.zeros(SIZE, bool)
    known[[8, 13, 15]] = True
    asked = [Asked(tokens, np.array([14]), known)]
    summed, mean = (
        retriever_of(showo, index, Case("out", distances)).propose(asked)[0].hits
        for distances in ("sum", "mean")
    )
    assert np.array_equal(summed.distances / np.float32(3), mean.distances)
    assert np.array_equal(summed.positions, mean.positions)


def test_a_layer_works_while_its_share_of_the_tokens_is_known(showo, index):
    case = Case(start=0.25, end=0.5, curve="linear")
    retriever = retriever_of(showo, index, case)
    for count, factor in (
        (0, 0),
        (8, 0),
        (9, (9.5 / 36 - 0.25) * 4),
        (17, (17.5 / 36 - 0.25) * 4),
        (18, 0),
    ):
        known = np.arange(SIZE) < count
        assert retriever.moment(known) == pytest.approx(factor), count
        assert retriever.works(known).any() == (factor > 0)
    trace = draw_pictures(showo, recipe_of(case, retriever), [7]).traces[0]
    assert 0 < (trace.weight > 0).sum() < SIZE / 2
    assert trace.weight.max() < 0.8


def test_only_search_by_bits_leaves_border_keys_out(showo):
    flat = sign_index(4, structure="flat")
    with pytest.raises(InputError, match="cannot leave border keys out; build the index with the"):
        make_retriever(flat, showo.grid, flat.codebook, Case("out").options)
