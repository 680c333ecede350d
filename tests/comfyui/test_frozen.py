"""Workflows and nodes of earlier releases still load, and draw the tokens that they drew then."""

import json

import pytest

from scripts.freeze import FROZEN, input_type, node_signatures, workflow_hashes

RELEASES = sorted(path.parent.name for path in FROZEN.glob("*/nodes.json"))
WORKFLOWS = [
    pytest.param(release, path.stem, id=f"{release}-{path.stem}")
    for release in RELEASES
    for path in sorted((FROZEN / release / "api").glob("*.json"))
]


def frozen(release, name):
    return json.loads((FROZEN / release / name).read_text("utf-8"))


@pytest.mark.parametrize(("release", "name"), WORKFLOWS)
def test_a_frozen_workflow_draws_the_same_tokens(client, release, name):
    hashes = frozen(release, "tokens.json")["workflows"][name]
    assert workflow_hashes(client, frozen(release, f"api/{name}.json")) == hashes


@pytest.mark.parametrize(
    ("release", "node"), [(r, node) for r in RELEASES for node in frozen(r, "nodes.json")]
)
def test_inputs_and_outputs_are_only_appended(object_info, release, node):
    """Saved workflows store widgets and links by position: what a node had comes first, in the
    same order, with the same choices on offer; what came later is optional."""
    then, now = frozen(release, "nodes.json")[node], node_signatures(object_info)[node]
    added = now["inputs"][len(then["inputs"]) :]
    assert [group for _, _, group, _ in added] == ["optional"] * len(added)
    for old, new in zip(then["inputs"], now["inputs"], strict=False):
        assert old[:3] == new[:3]
        assert set(old[3] or ()) <= set(new[3] or ())
    assert len(then["inputs"]) <= len(now["inputs"])
    assert now["outputs"][: len(then["outputs"])] == then["outputs"]


@pytest.mark.parametrize(
    ("spec", "kind"), [([["a", "b"], {}], "COMBO"), (["COMBO", {}], "COMBO"), (["INT", {}], "INT")]
)
def test_both_ways_to_write_a_combo_are_one_type(spec, kind):
    assert input_type(spec) == kind
