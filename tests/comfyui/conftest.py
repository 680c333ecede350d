"""One real ComfyUI for all tests of this folder, with the extension mounted in it."""

import copy
import json

import pytest

from scripts.comfyui import ROOT, Server, find_comfyui, mount
from scripts.comfyui_client import Client, node_of
from scripts.freeze import PROBE


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A running ComfyUI with an empty base directory; a test node shows hashes of tokens."""
    comfyui = find_comfyui()
    if comfyui is None:
        pytest.skip("no ComfyUI: set COMFYUI_DIR, or let `python run.py test` fetch one")
    base = tmp_path_factory.mktemp("comfyui")
    mount(base)
    mount(base, PROBE, PROBE.name)
    # The pocket model is too small to gain from threads, and threads that have to share busy cores
    # wait for each other many times longer than they compute.
    with Server(comfyui, base, options=["--cpu"], threads=1) as running:
        yield running


@pytest.fixture(scope="session")
def client(server):
    """A websocket and HTTP client of the running ComfyUI."""
    with Client(server.url) as connected:
        yield connected


@pytest.fixture(scope="session")
def object_info(client):
    """What ComfyUI tells the browser about our nodes: id -> schema."""
    nodes = client.get("/object_info")
    return {name: schema for name, schema in nodes.items() if name.startswith("ARRAG_")}


@pytest.fixture
def workflow():
    """Function: a shipped API workflow, with inputs of some nodes replaced.

    `workflow("daid", ARRAG_DAiDSampler={"seed": 3})`
    """

    def load(name, **replaced):
        body = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text("utf-8"))
        for class_type, inputs in replaced.items():
            body[node_of(body, class_type)]["inputs"].update(copy.deepcopy(inputs))
        return body

    return load
