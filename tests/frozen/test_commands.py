"""Commands of earlier releases draw the tokens that they drew then."""

import json

import pytest

from scripts.freeze import FROZEN, command_hashes

CASES = [
    pytest.param(line, hashes, id=f"{path.parent.name}-{number}")
    for path in sorted(FROZEN.glob("*/tokens.json"))
    for number, (line, hashes) in enumerate(json.loads(path.read_text("utf-8"))["commands"].items())
]


@pytest.mark.parametrize(("line", "hashes"), CASES)
def test_a_frozen_command_draws_the_same_tokens(tmp_path, line, hashes):
    assert command_hashes(line, tmp_path) == hashes
