"""What is drawn and counted, without and with an adapter."""

import sys

import forgetting
import pytest


@pytest.mark.parametrize("adapter", [[], ["--adapter", "pocket"]])
def test_known_and_new_subjects_are_counted(capsys, monkeypatch, adapter):
    few = ["--kinds", "single_object", "--limit", "2", "--seeds", "2", "--new", "3"]
    line = ["forgetting.py", "--index", "pocket", "--subject", "owl", *few, *adapter]
    monkeypatch.setattr(sys, "argv", line)
    forgetting.main()
    kind, known, new = capsys.readouterr().out.splitlines()
    assert kind.startswith("single_object: ")
    assert kind.endswith(" of 4")
    assert known.startswith("known, mean of the kinds: ")
    assert new == "new, with DAiD: 1.000 of 3"
