"""What a run keeps: nothing is lost by a kill, nothing is mixed with other settings."""

import json

import pytest

from arrag_engine.errors import InputError
from arrag_engine.evaluate.journal import Journal, Shard, open_journal, read_manifests, unchanged

SETTINGS = {"weights": "abc", "sampling": {"cfg": 1.5, "top_p": None}}


def put(folder, key, result, shard=None):
    with open_journal(folder, SETTINGS, {"device": "cpu"}, shard or Shard()) as journal:
        journal.put(key, result)


def test_what_is_done_is_there_again(tmp_path):
    folder = tmp_path / "new" / "run"
    put(folder, ("plain", 3), {"a": [1, 2.5]})
    put(folder, ("plain", "ü"), 7)
    with open_journal(folder, SETTINGS, {}) as journal:
        assert journal.get(("plain", 3)) == {"a": [1, 2.5]}
        assert journal.once(("plain", "ü"), lambda: pytest.fail("done twice")) == 7
        assert journal.get(("daid", 3)) is None
        assert journal.once(("daid", 3), lambda: "now") == journal.get(("daid", 3)) == "now"


def test_a_line_that_a_kill_cut_off_is_done_again(tmp_path):
    put(tmp_path, (1,), "one")
    with (tmp_path / "done.jsonl").open("ab") as file:
        file.write(b'[[2], "tw')
    put(tmp_path, (3,), "three")
    with open_journal(tmp_path, SETTINGS, {}) as journal:
        assert (journal.get((1,)), journal.get((2,)), journal.get((3,))) == ("one", None, "three")


def test_damage_before_the_end_is_named(tmp_path):
    put(tmp_path, (1,), "one")
    (tmp_path / "done.jsonl").write_text('[[0], "ze\n[[1], "one"]\n')
    with (
        pytest.raises(InputError, match=r"line 1 of .*done.jsonl is damaged .*; delete that line"),
        open_journal(tmp_path, SETTINGS, {}),
    ):
        pass


def test_other_settings_are_refused_by_name(tmp_path):
    put(tmp_path, (1,), "one")
    changed = SETTINGS | {"sampling": {"cfg": 3, "top_p": None}}
    with (
        pytest.raises(InputError, match=r"begun with sampling.cfg 1.5, this command has 3; use"),
        open_journal(tmp_path, changed, {}, Shard(2, 4)),
    ):
        pass
    with (
        pytest.raises(InputError, match="weights 'abc', this command has None"),
        open_journal(tmp_path, {"sampling": SETTINGS["sampling"]}, {}),
    ):
        pass
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        read_manifests(tmp_path)


def test_shards_share_a_folder_and_see_each_other(tmp_path):
    assert [Shard(i, 3).of(range(7)) for i in (1, 2, 3)] == [[0, 3, 6], [1, 4], [2, 5]]
    put(tmp_path, (1,), {"files": {"plain/1.png": "aa"}}, Shard(1, 2))
    put(tmp_path, (2,), {"files": {"plain/0.png": "bb"}}, Shard(2, 2))
    with open_journal(tmp_path, SETTINGS, {}) as journal:
        assert journal.get((1,))
        assert journal.get((2,))
    assert {path.name for path in tmp_path.iterdir()} == {
        *("manifest.json", "manifest-1-of-2.json", "manifest-2-of-2.json"),
        *("done.jsonl", "done-1-of-2.jsonl", "done-2-of-2.jsonl"),
    }
    whole = json.loads((tmp_path / "manifest.json").read_text())
    assert whole["pictures"] == {"plain/0.png": "bb", "plain/1.png": "aa"}
    assert whole["settings"] == SETTINGS


def test_one_program_at_a_time_writes_a_shard(tmp_path):
    with (
        open_journal(tmp_path, SETTINGS, {}),
        pytest.raises(InputError, match="another program is writing"),
        open_journal(tmp_path, SETTINGS, {}),
    ):
        pass


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_journal(None, SETTINGS, {}) as journal:
        assert journal.once((1,), lambda: 5) == journal.get((1,)) == 5
    assert not list(tmp_path.iterdir())
    assert Journal().get((1,)) is None


def test_changed_and_missing_files_are_found(tmp_path):
    import hashlib

    (tmp_path / "a").write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    assert unchanged(tmp_path, {"a": digest})
    assert not unchanged(tmp_path, {"a": digest, "b": digest})
    (tmp_path / "a").write_bytes(b"y")
    assert not unchanged(tmp_path, {"a": digest})
