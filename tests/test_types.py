"""The type checker finds no error, with the settings of pyproject.toml."""

import pytest


def test_types_are_right(checker):
    pytest.importorskip("basedpyright", reason="basedpyright is not installed")
    said, _ = checker.communicate()
    assert checker.returncode == 0, said
