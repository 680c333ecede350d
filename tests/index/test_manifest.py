"""Manifests as a stranger may make them."""

import json
import random
from contextlib import suppress

import numpy as np
import pytest

from arrag_engine.errors import InputError
from arrag_engine.index import load_index, open_lookup, read_manifest, save_index, save_shards
from arrag_engine.index.manifest import file_bytes
from tests.index.test_lookup import CUTS, make_whole, parts_of


@pytest.fixture
def path(tmp_path):
    index, _ = make_whole()
    save_shards(tmp_path / "a.json", parts_of(index, CUTS[0]))
    return tmp_path / "a.json"


def changed(path, change):
    """Write the manifest after a change of its facts."""
    facts = json.loads(path.read_text())
    facts = change(facts) or facts
    path.write_text(json.dumps(facts))


def test_a_manifest_names_its_shards(path):
    manifest = read_manifest(path)
    assert [shard.file for shard in manifest.shards] == [
        "a-00000.safetensors",
        "a-00001.safetensors",
        "a-00002.safetensors",
    ]
    assert [(s.first, s.pictures) for s in manifest.shards] == [(0, 5), (5, 1), (6, 7)]
    assert manifest.pictures == 13
    assert len(path.read_bytes()) < 1500
    files = [path, *map(manifest.place, manifest.shards)]
    assert file_bytes(path) == sum(file.stat().st_size for file in files)


def of_shard(name, value, number=1):
    return lambda facts: facts["shards"][number].update({name: value})


REFUSED = {
    "another file": (lambda f: {"a": 1}, "format"),
    "a list": (lambda f: [f], "format"),
    "a later version": (lambda f: f.update(version=2), "version is 2, not 1"),
    "a version that is no number": (lambda f: f.update(version=True), "version is True"),
    "a field more": (lambda f: f.update(more=1), "fields are not"),
    "a field less": (lambda f: f.pop("vq") and None, "fields are not"),
    "no shard": (lambda f: f.update(shards=[]), "list 1 to 4096 shards"),
    "too many shards": (lambda f: f.update(shards=f["shards"] * 2000), "list 1 to 4096 shards"),
    "a billion shards": (lambda f: f.update(shards=10**9), "list 1 to 4096 shards"),
    "a shard without a name": (lambda f: f["shards"][0].pop("file") and None, "shard 0 does not"),
    "a path above": (of_shard("file", "../a-00001.safetensors"), "no .safetensors file of its"),
    "an absolute path": (of_shard("file", "/etc/a.safetensors"), "no .safetensors file of its"),
    "a path of Windows": (of_shard("file", "C:\\a.safetensors"), "no .safetensors file of its"),
    "a path below": (of_shard("file", "b/a.safetensors"), "no .safetensors file of its"),
    "another suffix": (of_shard("file", "a-00001.bin"), "no .safetensors file of its"),
    "a zero byte": (of_shard("file", "a\0.safetensors"), "no .safetensors file of its"),
    "a name that is none": (of_shard("file", 3), "no .safetensors file of its"),
    "a file twice": (of_shard("file", "A-00000.safetensors"), "listed twice"),
    "pictures that overlap": (of_shard("first", 4), "begins with picture 4 where 5 comes next"),
    "pictures that are missing": (of_shard("first", 7), "begins with picture 7 where 5"),
    "a negative number": (of_shard("pictures", -1), "pictures of shard 1 is -1"),
    "a broken number": (of_shard("pictures", 1.5), "pictures of shard 1 is 1.5"),
    "a truth": (of_shard("pictures", True), "pictures of shard 1 is True"),
    "an empty shard": (of_shard("pictures", 0, 2), "shard 2 has no pictures"),
    "very many pictures": (of_shard("pictures", 2**31 - 1, 2), "are more than 2147483647"),
    "a huge number": (of_shard("pictures", 10**400, 2), "pictures of shard 2 is"),
    "a short hash": (of_shard("sha256", "00"), "sha256 of shard 1 is '00'"),
    "another VQ's hash": (lambda f: f.update(vq="z" * 64), "which is no SHA-256"),
    "a grid that is none": (lambda f: f.update(grid="5x"), "grid"),
    "a grid that is no text": (lambda f: f.update(grid=[5, 6]), "grid"),
    "keys that are none": (lambda f: f["keys"].update(space="other"), "key space"),
    "keys of other types": (lambda f: f["keys"].update(position_weight="1"), "position weight"),
    "keys of lists": (lambda f: f["keys"].update(neighborhood=[1]), "neighborhood"),
    "a structure that is none": (lambda f: f.update(structure="tree"), "structure is 'tree'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_manifest_is_refused_in_one_sentence(path, name):
    change, message = REFUSED[name]
    changed(path, change)
    with pytest.raises(InputError, match="is not a manifest of an index in shards") as refused:
        read_manifest(path)
    assert message in str(refused.value)
    assert str(refused.value).count("; ") <= 2
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"[" * 100_000, b'{"format": NaN}', b" " * 5_000_000],
    ids=["empty", "no text", "deep", "not a number", "large"],
)
def test_what_is_no_json_is_refused(path, data):
    path.write_bytes(data)
    with pytest.raises(InputError, match="is not a manifest of an index in shards"):
        open_lookup(path)


MISMATCHES = {
    "another hash": (of_shard("sha256", "0" * 64), "sha256"),
    "another VQ": (lambda f: f.update(vq="0" * 64), "VQ"),
    "another grid": (lambda f: f.update(grid="6x6"), "grid"),
    "other keys": (lambda f: f["keys"].update(borders="zero"), "keys"),
    "another structure": (lambda f: f.update(structure="ivf"), "structure"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_shards_that_are_others_are_refused(path, name):
    change, message = MISMATCHES[name]
    changed(path, change)
    with pytest.raises(InputError, match=f"another file than the manifest names: its {message} is"):
        open_lookup(path)


def test_shards_that_change_places_are_refused(path):
    def swap(facts):
        one, _, other = facts["shards"]
        one["file"], other["file"] = other["file"], one["file"]

    changed(path, swap)
    with pytest.raises(InputError, match=r"shard 0 \(a-00002.safetensors\).* its sha256 is"):
        open_lookup(path)


def test_a_missing_or_damaged_shard_is_one_sentence(path):
    shard = path.with_name("a-00001.safetensors")
    data = shard.read_bytes()
    shard.write_bytes(data[:-9])
    with pytest.raises(InputError, match=r"shard 1 \(a-00001.safetensors\) of .* cannot be used"):
        open_lookup(path)
    shard.unlink()
    with pytest.raises(InputError, match="cannot be used: there is no index file"):
        open_lookup(path)
    with pytest.raises(InputError, match="is not a manifest"):
        open_lookup(path.with_name("none.json"))


def test_damaged_manifests_load_or_are_refused(path, pytestconfig):
    data, rng = path.read_bytes(), random.Random(0)
    for _ in range(min(pytestconfig.getoption("--mutations"), 2000)):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(damaged))
            damaged[place : place + rng.randrange(3)] = rng.choice(
                (b"", b"0", b"-", b"9999999999", b'"', b"/", b"[", bytes([rng.randrange(256)]))
            )
        path.write_bytes(damaged)
        with suppress(InputError):
            open_lookup(path).lookup(np.zeros((1, 32), np.float32), 3)


def test_where_one_file_is_wanted_a_manifest_is_refused(path):
    with pytest.raises(InputError, match="manifest of an index in shards, which is for drawing"):
        load_index(path)


def test_one_file_opens_as_before(tmp_path):
    index, queries = make_whole()
    save_index(index, tmp_path / "a.safetensors")
    found = open_lookup(tmp_path / "a.safetensors").lookup(queries, 3)
    assert np.array_equal(found.sources, index.lookup(queries, 3).sources)
