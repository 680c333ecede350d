"""Recall against a plain count, and what building makes of it."""

from types import SimpleNamespace

import numpy as np
import pytest

from arrag_engine.errors import InputError
from arrag_engine.grid import Grid
from arrag_engine.index import KeySpec
from arrag_engine.index.keys import Keys
from arrag_engine.index.search import build_searcher
from arrag_engine.index.search.choose import _reach
from arrag_engine.index.search.recall import make_trial, measure_recall
from scripts.made_up_pictures import make_corpus
from tests.index.search.cases import (
    BUILDS,
    SPECS,
    all_keys,
    make_keys,
    make_searcher,
    squared_distances,
    unit,
)

INVERTED = [(spec, kind) for spec, kind in BUILDS if kind != "flat"]


def others(keys, trial):
    """Ids of the patches of pictures that no query comes from."""
    ids = np.arange(keys.size)
    return ids[~np.isin(ids // len(keys.active), trial.images)]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_queries_are_made_of_tokens_of_pictures_left_out(spec):
    keys = make_keys(spec, images=40)
    trial = make_trial(keys)
    assert len(trial.images) == 4
    assert len(trial.queries) == min(256, 4 * len(keys.active))
    drawn = KeySpec(spec.neighborhood, spec.borders, "codebook", spec.position_weight)
    rows = all_keys(Keys(keys.tokens, None, keys.codebook, keys.grid, drawn))
    own = rows.reshape(40, len(keys.active), -1)[trial.images].reshape(-1, keys.dim)
    assert (squared_distances(trial.queries, own).min(axis=1) < 1e-9).all()
    distances = squared_distances(trial.queries, all_keys(keys)[others(keys, trial)])
    np.testing.assert_allclose(trial.furthest, np.sort(distances)[:, 63], atol=1e-5)


@pytest.mark.parametrize(("spec", "kind"), INVERTED, ids=str)
def test_recall_equals_a_plain_count(spec, kind):
    keys = make_keys(spec, images=40, codes=300)
    searcher, trial = make_searcher(keys, kind, nprobe=6), make_trial(keys)
    rows, allowed = all_keys(keys), others(keys, trial)
    shares = measure_recall(trial, searcher, keys)
    for share, query in zip(shares, trial.queries, strict=True):
        found = searcher.search(query[None], 128)[1][0]
        found = [i for i in found if i in set(allowed)][:64]
        distances = squared_distances(query[None], rows)[0]
        last = np.sort(distances[allowed])[63]
        fewest, most = ((distances[found] <= last + e).sum() / 64 for e in (-1e-4, 1e-4))
        assert fewest <= share <= most
    assert 0 < shares.mean() < 1


def test_exact_search_has_full_recall_though_many_keys_are_equal():
    for spec in SPECS:
        keys = make_keys(spec, images=40, codes=3)
        shares = measure_recall(make_trial(keys), make_searcher(keys, "flat"), keys)
        assert (shares == 1).all()


def test_patches_of_the_asking_picture_do_not_crowd_out_the_others():
    """Nearest to a query may be more patches of its own picture than are asked for at first."""
    keys = make_keys(images=6, grid=Grid(18, 18), codes=6)
    keys.tokens[:] = np.arange(6)[:, None]  # every picture of one colour
    trial = make_trial(keys)
    assert len(keys.active) > 2 * trial.k
    assert (measure_recall(trial, make_searcher(keys, "flat"), keys) == 1).all()


def test_a_single_picture_is_asked_about_itself():
    keys = make_keys(images=1)
    trial = make_trial(keys)
    assert len(trial.images) == 0
    assert trial.k == keys.size
    assert (measure_recall(trial, make_searcher(keys, "flat"), keys) == 1).all()


@pytest.mark.parametrize(("spec", "kind"), INVERTED, ids=str)
def test_the_target_is_met_with_as_few_lists_as_it_takes(spec, kind):
    keys = make_keys(spec, images=60, grid=Grid(6, 6), codes=300)
    probes = []
    for target in (0.3, 0.9):
        searcher = build_searcher(keys, kind, target)
        trial = make_trial(keys)
        measured = measure_recall(trial, searcher, keys)
        assert measured.mean() >= target
        assert searcher.settings["recall"] == f"{measured.mean():.4f}"
        assert searcher.settings["nprobe"] == str(searcher.nprobe)
        if searcher.nprobe > 1:
            searcher.nprobe = searcher.nprobe // 2
            fewer = measure_recall(trial, searcher, keys)
            assert fewer.mean() - 2 * fewer.std() / len(fewer) ** 0.5 < target
            searcher.nprobe = int(searcher.settings["nprobe"])
        probes.append(int(searcher.nprobe))
    assert probes == sorted(probes)


def test_half_precision_is_taken_where_8_bits_cannot_meet_the_target(monkeypatch):
    """Keys that lie closer together than a 255th of the distance between two heaps of them."""
    monkeypatch.setattr("arrag_engine.index.search.choose.list_count", lambda size: 1)
    keys = make_keys(KeySpec(), images=400, codes=2)
    codebook = unit(np.array([[1.0] * 8, [-1.0] * 8]))
    noise = np.random.default_rng(3).normal(0, 0.003, keys.vectors.shape)
    close = Keys(keys.tokens, unit(codebook[keys.tokens] + noise), codebook, keys.grid, keys.spec)
    monkeypatch.setattr("arrag_engine.index.search.ivf.EXPONENT", 0)  # no scales
    low, high = build_searcher(close, "ivf", 0.1), build_searcher(close, "ivf", 0.9)
    assert low.choice == "8-bit keys, 1 of 1 lists: the fewest whose recall meets the target of 0.1"
    assert high.choice == (
        "16-bit keys, 1 of 1 lists: the fewest whose recall meets the target of 0.9; the recall "
        f"of smaller codes levels off at {high.levelled:.4f}"
    )
    assert low.arrays()["codes"].shape[1] == 32
    assert low.recall < 0.9 <= high.recall
    assert high.arrays()["codes"].shape[1] == 64


def test_a_target_out_of_reach_is_refused_with_what_was_reached(monkeypatch):
    keys = make_keys(SPECS[1], images=40)
    monkeypatch.setattr("arrag_engine.index.search.choose._reach", lambda *_: False)
    with pytest.raises(InputError, match=r"recall of 0.9 is out of reach of the compact"):
        build_searcher(keys, "compact", 0.9)


class Levelled:
    """Recall that rises with the lists to a level: 0.9549, as 8-bit keys at a million patches."""

    centroids = np.zeros((3001, 1))
    recall, level, error = 0.0, 0.9549, 0.0038

    def __init__(self, exact):
        self.codec, self.nprobe, self.asked = SimpleNamespace(exact=exact), 0, []

    def shares(self, trial, searcher, keys):
        """Of 100 queries."""
        self.asked.append(self.nprobe)
        mean = self.level * (1 - 0.5 ** (1 + self.nprobe / 16))
        return mean + 10 * self.error * np.array([-1, 1] * 50)


@pytest.mark.parametrize(
    ("target", "lists"),
    [
        (0.45, 1),
        (0.90, 64),
        (0.945, 128),
        (0.95, None),  # less than two standard errors below the level
        (0.96, None),
    ],
)
def test_lists_are_added_until_the_recall_levels_off(target, lists, monkeypatch):
    """And not until all are scanned, for a recall that is met by chance."""
    searcher = Levelled(exact=False)
    monkeypatch.setattr("arrag_engine.index.search.choose.measure_recall", searcher.shares)
    assert _reach(target, searcher, None, None) == (lists is not None)
    assert searcher.asked[0] == 3001  # the level
    assert searcher.asked[1:] == sorted(searcher.asked[1:])
    assert searcher.asked[-1] == (lists or 192)


def test_codes_that_are_exact_need_no_level(monkeypatch):
    searcher = Levelled(exact=True)
    searcher.level, searcher.error = 1.0, 0.0
    monkeypatch.setattr("arrag_engine.index.search.choose.measure_recall", searcher.shares)
    assert _reach(0.95, searcher, None, None)
    assert searcher.asked == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]


@pytest.mark.slow
def test_a_million_patches_are_not_searched_list_by_list(tmp_path):
    """Lists differ in width a hundredfold; 8 bits without their scales level off below 0.95."""
    corpus = make_corpus(1_000_000, 128, 2048, tmp_path)
    for structure, width in (("ivf", 32), ("compact", 8)):
        spec = KeySpec(space="codebook" if structure == "compact" else "encoder")
        searcher = build_searcher(corpus.keys(spec, slice(None)), structure)
        assert searcher.recall >= 0.95
        assert searcher.nprobe <= 128 < len(searcher.centroids)
        assert searcher.arrays()["codes"].nbytes == width * searcher.size
        assert f"{searcher.nprobe} of 3001 lists: the fewest" in searcher.choice
