"""Shards and builds on a Ray cluster of four nodes, all of them on this machine."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from arrag_engine.build import build_in_parts, build_index
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.errors import InputError
from arrag_engine.index import Hits, open_lookup, save_shards
from arrag_engine.index.cluster import Slot, connect, on_cluster, spread
from arrag_engine.index.manifest import Shard
from arrag_engine.retrieval import make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling
from tests.index.test_lookup import CUTS, make_whole, parts_of, same
from tests.pictures import picture
from tests.tiny import tiny_index

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"  # a key would be written to the home folder
ROOT = Path(__file__).parents[2]
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


class FakeManifest:
    shards = tuple(Shard(f"{i}.safetensors", 10 * i, 10, "") for i in range(5))


def test_shards_go_to_machines_that_have_them_evenly():
    a, b, c = (Slot(0, node) for node in "abc")
    holders = {a: {0, 1, 2, 3}, b: {2, 3, 4}, c: set()}
    plan, missing = spread(FakeManifest, range(5), holders, {})
    assert (plan, missing) == ({a: [0, 1], b: [2, 3, 4]}, [])
    plan, missing = spread(FakeManifest, [0, 4], {a: {0}}, {})
    assert (plan, missing) == ({a: [0]}, [4])


def test_what_is_open_already_counts():
    a, b = Slot(0, "a"), Slot(0, "b")
    everywhere = {a: {0, 1, 2, 3}, b: {0, 1, 2, 3}}
    assert spread(FakeManifest, [2, 3], everywhere, {0: a, 1: Slot(0, "gone")}) == (
        {b: [2], a: [3]},
        [],
    )


def test_all_machines_are_used_before_a_second_core_of_one():
    holders = {Slot(core, node): set(range(5)) for node, core in (("a", 0), ("a", 1), ("b", 0))}
    plan, _ = spread(FakeManifest, range(5), holders, {})
    assert plan == {Slot(0, "a"): [0, 3], Slot(0, "b"): [1, 4], Slot(1, "a"): [2]}


def test_without_ray_a_cluster_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"needs the package ray; install it with: pip install"):
        connect("127.0.0.1:6379")


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9", "127.0.0.1:99999", "nowhere.invalid:6379", "a..b:6379"]
)
def test_where_nothing_answers_it_is_one_sentence_at_once(address):
    pytest.importorskip("ray", reason="the package ray is not installed")
    with pytest.raises(InputError, match=f"there is no Ray cluster at '{address}' that answers"):
        connect(address)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    ray = pytest.importorskip("ray", reason="the package ray is not installed")
    from ray.cluster_utils import Cluster

    health = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)  # as if installed there
    made = Cluster(
        initialize_head=True,
        head_node_args=NODE | {"include_dashboard": False, "_system_config": health},
    )
    for _ in range(3):
        made.add_node(**NODE)
    yield made
    ray.shutdown()
    made.shutdown()
    patch.undo()


@pytest.fixture
def path(tmp_path):
    index, _ = make_whole()
    save_shards(tmp_path / "a.json", parts_of(index, CUTS[0]))
    return tmp_path / "a.json"


def actor_of(lookup, shard):
    return lookup.shards.actors[lookup.shards.slots[shard]]


def kept(cluster):
    """Four nodes again, for the next test."""
    while len(cluster.list_all_nodes()) < 4:
        cluster.add_node(**NODE)


@pytest.mark.slow
def test_a_cluster_answers_as_this_machine_does(cluster, path):
    here, there = open_lookup(path), open_lookup(path, cluster.address)
    _, queries = make_whole()
    assert len(set(there.shards.actors.values())) == 3
    for k in (1, 25, 150):
        same(there.lookup(queries, k), here.lookup(queries, k))
    without = [[], [4, 5], [12], [0, 1, 2, 3, 4, 5], *([[]] * 5)]
    same(there.lookup(queries, 9, without=without), here.lookup(queries, 9, without=without))
    allowed = np.array([12, 3])
    same(there.lookup(queries, 9, allowed), here.lookup(queries, 9, allowed))
    words, one = here.about(["red", "cars"])
    assert there.about(["red", "cars"])[0] == words
    other = there.about(["red", "cars"])[1].filtered([], ["owl"])
    same(other.lookup(queries, 30), one.filtered([], ["owl"]).lookup(queries, 30))
    assert list(there.sources) == list(here.sources)
    assert np.array_equal(there.tokens[np.array([12, 0])], here.tokens[np.array([12, 0])])
    with pytest.raises(InputError, match="matches 'boat'"):
        there.matching("boat")


@pytest.mark.slow
def test_a_killed_actor_and_a_lost_node_are_replaced(cluster, path):
    import ray

    here, there = open_lookup(path), open_lookup(path, cluster.address)
    _, queries = make_whole()
    wanted = here.lookup(queries, 30)
    ray.kill(actor_of(there, 1))
    same(there.lookup(queries, 30), wanted)
    nodes = {node.node_id: node for node in cluster.list_all_nodes()}
    used = {slot.node: one for slot, one in there.shards.actors.items()}
    lost = next(node for node in used if nodes[node] is not cluster.head_node)
    cluster.remove_node(nodes[lost], allow_graceful=False)
    ray.kill(used[lost])  # its process outlives a node on the same machine
    same(there.lookup(queries, 30), wanted)
    kept(cluster)


@pytest.mark.slow
def test_a_question_that_ends_every_process_is_not_asked_forever(cluster, path, monkeypatch):
    import ray

    there = open_lookup(path, cluster.address)
    _, queries = make_whole()
    grouped = there.shards._grouped

    def killed(numbers):
        ray.kill(actor_of(there, 1))
        return grouped(numbers)

    monkeypatch.setattr(there.shards, "_grouped", killed)
    with pytest.raises(InputError, match=r"a-00001.safetensors ended 3 times at the same question"):
        there.lookup(queries, 30)
    monkeypatch.undo()
    same(there.lookup(queries, 30), open_lookup(path).lookup(queries, 30))


@pytest.mark.slow
def test_a_second_cluster_in_one_process_is_refused(cluster, path):
    open_lookup(path, cluster.address)
    with pytest.raises(InputError, match="uses another Ray cluster than 'local' already"):
        open_lookup(path, "local")


@pytest.mark.slow
def test_without_a_machine_that_has_the_files_it_is_one_sentence(cluster, path, monkeypatch):
    import ray

    there = open_lookup(path, cluster.address)
    _, queries = make_whole()
    monkeypatch.setattr("arrag_engine.index.cluster.PATIENCE", 2.0)
    path.with_name("a-00001.safetensors").rename(path.with_name("away"))
    ray.kill(actor_of(there, 1))
    started = time.monotonic()
    with pytest.raises(InputError, match=r"no machine of the cluster has .*a-00001.safetensors"):
        there.lookup(queries, 30)
    assert time.monotonic() - started < 60
    with pytest.raises(InputError, match=r"no machine of the cluster has .*a-00001.safetensors"):
        open_lookup(path, cluster.address)


@pytest.mark.slow
def test_a_shard_that_is_another_file_is_refused(cluster, path):
    shutil.copyfile(path.with_name("a-00002.safetensors"), path.with_name("a-00001.safetensors"))
    with pytest.raises(InputError, match="another file than the manifest names: its sha256 is"):
        open_lookup(path, cluster.address)


@pytest.mark.slow
def test_the_same_seed_draws_the_same_tokens(cluster, model, tmp_path):
    index = tiny_index(model, 9)
    save_shards(tmp_path / "a.json", parts_of(index, (0, 2, 3, 9)))
    codebook = model.vq.codebook(model.device)
    drawn = []
    sharded = (open_lookup(tmp_path / "a.json", address) for address in ("", cluster.address))
    for source in (index, *sharded):
        options = RetrievalOptions(0.7, neighbours=20)
        retriever = make_retriever(source, model.grid, codebook, options)
        recipe = Recipe([1, 2, 3], [1, 0, 3], Sampling(), (retriever,))
        drawn.append(draw_pictures(model, recipe, [5, 6], 4).tokens)
    assert np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(drawn[0], drawn[2])


@pytest.mark.slow
def test_a_build_on_a_cluster_is_that_of_one_process(
    cluster, model, model_file, tmp_path, monkeypatch
):
    for module in ("parts", "building"):
        monkeypatch.setattr(f"arrag_engine.build.{module}.PICTURES", 8)
    for i in range(20):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        picture(tmp_path / "pictures" / f"{i:02}.png", i, (20, 15))
    folder, out = tmp_path / "pictures", tmp_path / "a.safetensors"
    build_index(model, folder, tmp_path / "whole.safetensors")

    def run(function, calls, gpu):
        return on_cluster(cluster.address, function, calls, gpu)

    build_in_parts(model, model_file, folder, out, run=run)
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    build_in_parts(model, model_file, folder, tmp_path / "a.json", shard_pictures=8, run=run)
    same_pictures = open_lookup(tmp_path / "a.json", cluster.address)
    assert list(same_pictures.sources) == list(open_lookup(out).sources)


def fails_once(place):
    """Kills its process the first time."""
    if not place.exists():
        place.touch()
        os._exit(1)
    return Hits(*(np.zeros((1, 1)) for _ in range(4)))


def complains():
    raise InputError("one sentence")


@pytest.mark.slow
def test_what_a_lost_process_had_begun_is_begun_again(cluster, tmp_path):
    [hits] = on_cluster(cluster.address, fails_once, [(tmp_path / "a",)], False)
    assert hits.codes.tolist() == [[0]]
    with pytest.raises(InputError, match=r"^one sentence$"):
        list(on_cluster(cluster.address, complains, [()], False))


@pytest.mark.slow
def test_machines_are_asked_once_a_look_up(cluster, path, monkeypatch):
    there = open_lookup(path, cluster.address)
    asked = []
    get = there.shards.ray.get
    monkeypatch.setattr(there.shards.ray, "get", lambda a: (asked.append(1), get(a))[1])
    there.lookup(np.zeros((32, 32), np.float32), 5)
    assert len(asked) == 3


IN_COMFYUI = """
import importlib.util, os, sys
from pathlib import Path

root, path, address = sys.argv[1:]
sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(root)]
spec = importlib.util.spec_from_file_location(
    "/custom_nodes/ComfyUI-ARRAG", root + "/__init__.py", submodule_search_locations=[root]
)
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
index = importlib.import_module(spec.name + ".arrag_engine.index")
errors = importlib.import_module(spec.name + ".arrag_engine.errors")
import numpy as np

here, there = index.open_lookup(Path(path)), index.open_lookup(Path(path), address)
queries = np.random.default_rng(0).standard_normal((9, here.spec.dim(here.codebook.shape[1])))
for view in (lambda one: one, lambda one: one.about(["red"])[1], lambda one: one.matching("car")):
    hits = [view(one).lookup(queries, 9) for one in (here, there)]
    assert all(map(np.array_equal, hits[0].fields, hits[1].fields))
assert list(here.sources) == list(there.sources)
os.remove(Path(path).with_name("a-00001.safetensors"))
try:
    index.open_lookup(Path(path), address)
except errors.InputError as error:
    print(error)
assert "arrag_engine" not in sys.modules
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("local", [False, True], ids=["cluster", "local"])
def test_comfyui_reaches_a_cluster_under_its_own_name_for_the_package(
    cluster, path, tmp_path, local
):
    """ComfyUI imports a custom node by its path; no class of that name exists on the machines."""
    address = "local" if local else cluster.address
    ran = subprocess.run(
        [sys.executable, "-c", IN_COMFYUI, str(ROOT), str(path), address],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    refused, last = ran.stdout.splitlines()
    assert refused.startswith("no machine of the cluster has ")
    assert last == "done"


@pytest.mark.slow
def test_the_cores_of_this_machine_build_the_same_file_by_command(model_file, tmp_path):
    pytest.importorskip("ray", reason="the package ray is not installed")
    (tmp_path / "pictures").mkdir()
    for i in range(5):
        picture(tmp_path / "pictures" / f"{i}.png", i, (20, 15))
    given = ["--model", str(model_file), "--images", str(tmp_path / "pictures")]
    for name, more in (("one", []), ("two", ["--cluster", "local"])):
        ran = subprocess.run(
            [
                *(sys.executable, "-m", "arrag_engine", "build", *given, *more),
                *("--out", str(tmp_path / f"{name}.safetensors")),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        assert "5 pictures" in ran.stdout
    one, two = (tmp_path / f"{name}.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
