"""What crosses between the machines of a cluster says the same and holds no class of ours."""

import pickle

import numpy as np
import pytest

from arrag_engine.errors import InputError
from arrag_engine.index import LocalLookup, load_index, read_manifest, save_shards
from arrag_engine.index.lookup import About, Filtered, Matching, View
from arrag_engine.index.manifest import facts_of
from arrag_engine.index.wire import Shards, answer_of, plain_arguments
from tests.index.test_lookup import CUTS, SPECS, make_whole, parts_of, same

WORDS = frozenset({"red", "car"})
VIEWS = [
    View(),
    View((About((("red", 1.5),), 1.5),)),
    View((Matching("0.png"), Filtered(("CC0",), ("owl",)))),
    View(spec=SPECS[1], bits=False),
]


@pytest.fixture
def there(tmp_path):
    index, _ = make_whole()
    save_shards(tmp_path / "a.json", parts_of(index, CUTS[0]))
    return read_manifest(tmp_path / "a.json")


def asked(shards, number, method, *arguments):
    """An answer, after both ways over the wire."""
    sent = pickle.loads(pickle.dumps(plain_arguments(arguments)))
    problem, answers = shards.ask(method, {number: sent})
    if problem:
        raise InputError(problem)
    crossed = pickle.dumps((sent, answers))
    assert b"arrag" not in crossed
    return answer_of(method, pickle.loads(crossed)[1][number])


def test_every_method_answers_as_it_does_here(there):
    shards = Shards(str(there.path), facts_of(there))
    shards.open([0])
    shards.open([2])
    local = LocalLookup(load_index(there.place(there.shards[2])))
    _, queries = make_whole()
    without = [np.array([0, 1])] * len(queries)
    for view in VIEWS:
        arguments = (view, queries, 9, None, without, False)
        if view.spec in (None, there.keys):
            same(asked(shards, 2, "lookup", *arguments), local.lookup(*arguments))
        for method in ("pictures", "partial"):
            assert asked(shards, 2, method, view) == getattr(local, method)(view)
    one, other = asked(shards, 2, "facts"), local.facts()
    assert np.array_equal(one.codebook, other.codebook)
    assert one[1:] == other[1:]
    assert asked(shards, 2, "source", 3) == local.source(3)
    assert asked(shards, 2, "counts", WORDS) == local.counts(WORDS)
    assert asked(shards, 2, "most", WORDS, {"red": 2.0}) == local.most(WORDS, {"red": 2.0})
    assert asked(shards, 2, "matches", ("png", "9")) == local.matches(("png", "9"))
    assert asked(shards, 2, "licence_counts") == local.licence_counts()
    assert np.array_equal(
        asked(shards, 2, "tokens", np.array([1, 0])), local.tokens(np.array([1, 0]))
    )


def test_what_is_wrong_crosses_as_a_sentence(there, monkeypatch):
    shards = Shards(str(there.path), facts_of(there))
    shards.open([0])

    def changed(self, number):
        raise InputError("the file has changed")

    monkeypatch.setattr(LocalLookup, "source", changed)
    with pytest.raises(InputError, match=r"^the file has changed$"):
        asked(shards, 0, "source", 1)
    there.place(there.shards[1]).unlink()
    with pytest.raises(InputError, match=r"shard 1 .* cannot be used"):
        shards.open([1])
