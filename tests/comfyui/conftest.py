"""One real ComfyUI for all tests of this folder, with the extension mounted in it."""

import copy
import json
import os
from pathlib import Path

import pytest

from scripts.comfyui import ROOT, Server, find_comfyui, mount
from scripts.comfyui_client import Client, node_of
from scripts.freeze import PROBE
from scripts.make_twins import CHROMIUM_OPTIONS, find_chromium


@pytest.fixture(scope="session")
def comfyui():
    """The folder of a ComfyUI."""
    found = find_comfyui()
    if found is None:
        pytest.skip("no ComfyUI: set COMFYUI_DIR, or let `python run.py test` fetch one")
    return found


@pytest.fixture(scope="session")
def server(comfyui, tmp_path_factory):
    """A running ComfyUI with an empty base directory; a test node shows hashes of tokens."""
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


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium of the system; Playwright brings none. Its event loop ends with the
    module: while it runs, no other test could run one."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium: apt install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium, args=CHROMIUM_OPTIONS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def open_page(browser, server):
    """Function: ComfyUI in a fresh browser profile."""

    def opened():
        shown = browser.new_page(viewport={"width": 1600, "height": 1000})
        shown.set_default_timeout(90_000)
        shown.goto(server.url)
        shown.wait_for_function("() => window.app?.graph && window.app.extensionManager")
        return shown

    return opened


@pytest.fixture(scope="session")
def screenshot(tmp_path_factory):
    """Function: leave a screenshot for a person to look at."""
    folder = Path(os.environ.get("ARRAG_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png")


@pytest.fixture
def page(request, open_page, screenshot):
    """ComfyUI in a fresh browser profile; a screenshot is left for a person to look at."""
    shown = open_page()
    yield shown
    screenshot(shown, request.node.name)
    shown.close()


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


@pytest.fixture(scope="session")
def narrow(comfyui, tmp_path_factory):
    """A ComfyUI of its own, whose log stream takes cp1252 only as a Windows pipe does."""
    base = tmp_path_factory.mktemp("narrow")
    mount(base)
    server = Server(comfyui, base, options=["--cpu"], threads=1)
    server.environment["PYTHONIOENCODING"] = "cp1252"
    with server, Client(server.url) as client:
        yield server, client


@pytest.fixture
def every_node(workflow):
    """A workflow with every kind of wire between our nodes."""
    body = workflow("daid")
    model, sampler = [node_of(body, "ARRAG_LoadModel"), 0], node_of(body, "ARRAG_DAiDSampler")

    def add(name, class_type, /, **inputs):
        body[name] = {"class_type": class_type, "inputs": inputs}

    add("encode", "ARRAG_VQEncode", model=model, image=[sampler, 0])
    add("decode", "ARRAG_VQDecode", model=model, tokens=["encode", 0])
    add("adapted", "ARRAG_LoadAdapter", model=model, adapter="pocket")
    body["faid"] = {
        "class_type": "ARRAG_FAiDSampler",
        "inputs": {
            **body[sampler]["inputs"],
            **{"model": ["adapted", 0], "strength": 1.0, "candidates": 0, "semantics": "step"},
        },
    }
    add(
        "build",
        "ARRAG_BuildIndex",
        **{"model": model, "name": "handed", "folder": "(the images input)", "captions": ""},
        **{"licence": "", "source": "", "crops": "center", "neighborhood": "recommended"},
        **{"borders": "recommended", "key_space": "recommended", "position_weight": -1.0},
        **{"structure": "auto", "recall_target": 0.95, "overwrite": True},
        images=[sampler, 0],
    )
    add("info", "PreviewAny", source=["build", 1])
    add(
        "credit",
        "ARRAG_SaveWithAttribution",
        **{"image": [sampler, 0], "trace": [sampler, 2], "filename_prefix": "every"},
        **{"credit_file": False, "content_credentials": "off"},
    )
    add("credits", "PreviewAny", source=["credit", 0])
    add(
        "map",
        "ARRAG_RetrievalMap",
        **{"trace": [sampler, 2], "image": [sampler, 0], "larger_than": 16, "opacity": 0.6},
    )
    add("mapped", "PreviewAny", source=["map", 2])
    for name in ("decode", "faid"):
        add(f"show {name}", "PreviewImage", images=[name, 0])
    return body
