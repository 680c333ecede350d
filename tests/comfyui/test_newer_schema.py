"""The nodes with a newer ComfyUI's schema classes, in a process of their own."""

import json
import subprocess
import sys

import pytest

from scripts.comfyui import CACHE, ROOT

NEWER = CACHE / "newer-schema"
SHOW = """
import asyncio, importlib.util, json, sys, types
comfyui, newer, root = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, comfyui)
import comfy.options
comfy.options.enable_args_parsing()
sys.path.append(root)
from scripts.launch_comfyui import declare_missing_operators
declare_missing_operators()
spec = importlib.util.spec_from_file_location("comfy_api.latest._io", newer + "/latest/_io.py")
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
sys.modules["server"] = types.SimpleNamespace(PromptServer=None)  # no node runs here
from comfy_api.latest import io
assert io is module
place = {"submodule_search_locations": [root]}
pack = importlib.util.spec_from_file_location("pack", root + "/__init__.py", **place)
sys.modules["pack"] = importlib.util.module_from_spec(pack)
pack.loader.exec_module(sys.modules["pack"])
extension = asyncio.run(sys.modules["pack"].comfy_entrypoint())
nodes = asyncio.run(extension.get_node_list())
told = {}
for node in nodes:
    schema = node.GET_SCHEMA()
    told[schema.node_id] = {
        "advanced": [i.id for i in schema.inputs if i.as_dict().get("advanced")],
        "inputs": [i.id for i in schema.inputs],
        "aliases": schema.search_aliases,
        "info": schema.get_v1_info(node).__dict__["name"],
    }
print("TOLD" + json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(comfyui):
    """Node id -> what its schema says."""
    if not NEWER.is_dir():
        pytest.skip("no newer schema classes: let `python run.py test` fetch them")
    command = [sys.executable, "-c", SHOW, str(comfyui), str(NEWER), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=comfyui, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.partition("TOLD")[2])


def test_every_node_has_the_inputs_that_it_has_today(told, object_info):
    for name, facts in told.items():
        sections = object_info[name]["input"]
        today = [*sections.get("required", {}), *sections.get("optional", {})]
        assert sorted(facts["inputs"]) == sorted(today)
    assert told.keys() == object_info.keys()


def test_rarely_touched_inputs_are_advanced_and_the_others_are_not(told):
    advanced = {name: set(facts["advanced"]) for name, facts in told.items()}
    assert advanced["ARRAG_DAiDSampler"] == {
        *("top_k", "top_p", "window", "preview_every", "exact_batch"),
        "redraw",
    }
    assert advanced["ARRAG_RetrievalOptions"] == {
        *("settings_from", "duplicates", "top_p", "start", "end", "curve", "rows"),
        *("max_distance", "include", "exclude", "copy_limit"),
        *("border_keys", "distances"),
    }
    assert "recall_target" in advanced["ARRAG_BuildIndex"]
    for name in ("prompt", "seed", "cfg", "temperature", "weight", "only", "model", "index"):
        assert not any(name in inputs for inputs in advanced.values()), name


def test_a_search_finds_every_node_by_other_words(told):
    assert all(facts["aliases"] for facts in told.values())


def test_the_classes_of_the_running_version_take_none_of_it(object_info):
    """0.3.75 knows neither; a field that a class does not take must not be passed."""
    assert "search_aliases" not in object_info["ARRAG_DAiDSampler"]
