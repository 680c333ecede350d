"""The interactive view of Retrieval Map in a real browser, every control, in both renderers."""

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from arrag_engine.index import SourceTable, load_index, save_index
from arrag_engine.shipped import INDEXES, resolve
from scripts.comfyui import ROOT
from scripts.comfyui_client import node_of

HOSTILE = (
    "<img src=x onerror=\"window.hacked='name'\">.png",
    "<script>window.hacked='script'</script>",
    '"><svg onload="window.hacked=\'svg\'">',
    "'); window.hacked='css'; url('",
    "javascript:window.hacked='link'",
    "{{constructor.constructor('window.hacked=1')()}}",
    "\u202egnp.exe",
)
LAYERS = 2
COMFYUIS_OWN = ("404 (Not Found)", "api.comfy.org")
"""Errors of a fresh ComfyUI without a user's files and without a network."""


def map_workflow():
    """The DAiD template with a map; two layers, whose indexes are used whole; two pictures."""
    body = json.loads((ROOT / "workflows" / "api" / "daid.json").read_text("utf-8"))
    sampler, options = (node_of(body, f"ARRAG_{n}") for n in ("DAiDSampler", "RetrievalOptions"))
    body[options]["inputs"] |= {"weight": 0.6, "subject": "*", "exclude": ""}
    second = copy.deepcopy(body[options])
    second["inputs"] |= {"weight": 0.3, "retrieval": [options, 0]}
    body["second"] = second
    body[sampler]["inputs"] |= {"retrieval": ["second", 0], "batch": 2, "seed": 5}
    body["map"] = {
        "class_type": "ARRAG_RetrievalMap",
        "inputs": {
            "trace": [sampler, 2],
            "image": [sampler, 0],
            "larger_than": 16,
            "opacity": 0.6,
        },
    }
    return body


@pytest.fixture(scope="module", autouse=True)
def settings(client):
    """The templates do not open by themselves; the classic renderer is back afterwards. Former
    tests' history goes, which may hold numbers that the frontend cannot read (NaN)."""
    client.post("/history", {"clear": True})
    client.post("/settings/Comfy.TutorialCompleted", True)
    yield
    client.post("/settings/Comfy.VueNodes.Enabled", False)


@pytest.fixture(scope="module")
def hostile_index(server):
    """The shipped index, in which all texts are markup and scripts."""
    index = load_index(resolve("pocket", INDEXES))
    sources = [
        type(source)(
            f"{i} {HOSTILE[i % len(HOSTILE)]}",
            HOSTILE[(i + 1) % len(HOSTILE)],
            *(source.width, source.height, source.sha256),
            HOSTILE[(i + 2) % len(HOSTILE)],
            source.thumbnail if i % 3 else HOSTILE[2].encode(),
            HOSTILE[4],
            source.crop,
        )
        for i, source in enumerate(index.sources)
    ]
    path = server.base / "models" / "arrag" / "indexes" / "hostile.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_index(replace(index, sources=SourceTable.from_sources(sources), file=None), path)
    yield path.name
    path.unlink()


class View:
    """The view of one map in one renderer."""

    def __init__(self, page, vue):
        self.page, self.vue, self.errors = page, vue, []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self.note)
        setting = "(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
        page.evaluate(setting, vue)

    def note(self, message):
        if message.type == "error" and not any(known in message.text for known in COMFYUIS_OWN):
            self.errors.append(message.text)

    def run(self, body):
        self.page.evaluate("(body) => app.loadApiJson(body, 'map')", body)
        self.page.evaluate(CENTRED)
        self.page.wait_for_selector(".arrag-map")
        self.page.evaluate("() => app.queuePrompt(0)")
        self.page.wait_for_selector(".arrag-map .stage", timeout=300_000)
        self.page.wait_for_function("() => document.querySelector('.arrag-map img').naturalWidth")

    def find(self, selector):
        return self.page.locator(f".arrag-map {selector}")

    def text(self, selector):
        return self.find(selector).inner_text()

    def facts(self):
        return self.find(".facts p").all_inner_texts()

    def place(self):
        """(row, column) that the view shows."""
        match = re.match(r"Row (\d+), column (\d+)", self.facts()[0])
        return tuple(map(int, match.groups()))

    def at(self, row, column):
        """The middle of a patch, in pixels of the stage."""
        box = self.find(".stage").bounding_box()
        return {
            "x": (column - 0.5) * box["width"] / 12,
            "y": (row - 0.5) * box["height"] / 12,
        }

    def patterns(self):
        """The exclude widgets of the layers, the earliest first."""
        return self.page.evaluate(PATTERNS)


CENTRED = """() => {
    const map = app.graph.nodes.find((node) => node.type === 'ARRAG_RetrievalMap');
    map.pos = [0, 0];
    map.setSize([760, 640]);
    for (const node of app.graph.nodes) if (node !== map) node.pos = [2000 + 20 * node.id, 0];
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [220, 180];
    app.graph.setDirtyCanvas(true, true);
}"""
PATTERNS = """() => app.graph.nodes
    .filter((node) => node.type === 'ARRAG_RetrievalOptions')
    .map((node) => [
        node.inputs.find((input) => input.name === 'retrieval').link != null,
        node.widgets.find((widget) => widget.name === 'exclude').value,
    ])
    .sort((a, b) => a[0] - b[0]).map((pair) => pair[1])"""


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes-2"])
def view(request, open_page, screenshot):
    page = open_page()
    shown = View(page, request.param)
    shown.run(map_workflow())
    yield shown
    screenshot(page, f"map-{request.node.name}-{request.param}")
    page.close()


@pytest.fixture(autouse=True)
def quiet(request):
    """No test leaves an error in the console."""
    yield
    if "view" in request.fixturenames:
        assert request.getfixturevalue("view").errors == []


def test_the_pointer_shows_the_patch_under_it(view, screenshot):
    view.find(".stage").hover(position=view.at(3, 5))
    assert view.place() == (3, 5)
    view.find(".stage").hover(position=view.at(7, 9))
    assert view.place() == (7, 9)
    listed = view.find(".candidates li").all_inner_texts()
    assert 1 <= len(listed) <= 8
    assert all(re.search(r"\d %, distance \d", text) for text in listed)
    assert (
        view.find(".thumbnail").first.evaluate("(e) => getComputedStyle(e).backgroundImage")
        != "none"
    )
    screenshot(view.page, f"map-hover-{view.vue}")


def test_a_click_pins_and_releases(view):
    view.find(".stage").click(position=view.at(4, 4))
    assert view.facts()[0] == "Row 4, column 4, pinned"
    view.find(".stage").hover(position=view.at(8, 8))
    assert view.place() == (4, 4)
    view.find(".stage").click(position=view.at(4, 4))
    view.find(".stage").hover(position=view.at(8, 8))
    assert view.place() == (8, 8)


def test_the_keyboard_does_all_of_it(view):
    view.page.mouse.move(5, 500)
    view.find(".stage").focus()
    view.page.keyboard.press("Home")
    row, column = view.place()
    assert column == 1
    for key, wanted in (
        ("ArrowRight", (row, 2)),
        ("ArrowDown", (row + 1, 2)),
        ("ArrowUp", (row, 2)),
        ("ArrowLeft", (row, 1)),
        ("ArrowLeft", (row, 1)),
        ("End", (row, 12)),
    ):
        view.page.keyboard.press(key)
        assert view.place() == wanted, key
    view.page.keyboard.press("Enter")
    assert view.facts()[0].endswith(", pinned")
    view.page.keyboard.press("Escape")
    assert not view.facts()[0].endswith(", pinned")
    view.page.keyboard.press("Space")
    view.page.keyboard.press("Enter")
    assert not view.facts()[0].endswith(", pinned")
    view.page.keyboard.press("Delete")  # means the node elsewhere
    assert view.find(".stage").is_visible()


def test_the_slider_and_the_button_play_the_drawing_order(view, screenshot):
    view.page.mouse.move(5, 500)
    slider = view.find("input[type=range]")
    slider.fill("30")
    assert view.text(".step") == "30 / 144"
    assert view.place() == (3, 6)
    slider.focus()
    view.page.keyboard.press("ArrowRight")
    assert view.text(".step") == "31 / 144"
    screenshot(view.page, f"map-order-{view.vue}")
    button = view.find(".play")
    assert button.get_attribute("aria-label") == "Play the drawing order"
    button.click()
    assert button.get_attribute("aria-label") == "Pause"
    view.page.wait_for_function(
        "() => document.querySelector('.arrag-map .slider, .arrag-map input').value > 40"
    )
    button.click()
    stopped = view.text(".step")
    view.page.wait_for_timeout(300)
    assert view.text(".step") == stopped
    slider.fill("140")
    button.click()
    view.page.wait_for_function(
        "() => document.querySelector('.arrag-map .step').textContent === '144 / 144'"
    )
    assert button.get_attribute("aria-label") == "Play the drawing order"


def test_overlays_change_what_is_painted(view, screenshot):
    def painted():
        return view.find("canvas").first.evaluate("(c) => c.toDataURL()")

    seen = set()
    for value, legend in (("none", ""), ("influence", "0 %\n50 %\n100 %"), ("drawer", "layer 2")):
        view.find("select").select_option(value)
        assert legend in view.text(".legend")
        seen.add(painted())
        screenshot(view.page, f"map-{value}-{view.vue}")
    view.find("select").select_option("none")
    assert len(seen) == 3


def test_the_pictures_of_a_batch(view):
    first = view.find("img").get_attribute("src")
    assert view.text(".count") == "1 / 2"
    assert view.page.get_by_label("Previous picture").is_disabled()
    view.page.get_by_label("Next picture").click()
    assert view.text(".count") == "2 / 2"
    assert view.find("img").get_attribute("src") != first
    assert view.page.get_by_label("Next picture").is_disabled()
    view.page.get_by_label("Previous picture").click()
    assert view.find("img").get_attribute("src") == first


def test_a_source_is_excluded_and_taken_back(view, screenshot):
    view.find(".stage").click(position=view.at(6, 6))
    before = view.patterns()
    button = view.find(".exclude").first
    name = view.find(".candidates strong").first.inner_text()
    button.click()
    assert re.match(r"Added =.* to exclude of .* \(#\d+\)\. Run again", view.text(".status"))
    after = view.patterns()
    assert sorted(map(len, after)) != sorted(map(len, before))
    assert f"={name}" in "\n".join(after).split("\n")
    assert button.inner_text() == "Undo"
    assert button.get_attribute("aria-pressed") == "true"
    screenshot(view.page, f"map-excluded-{view.vue}")
    button.click()
    assert view.text(".status").startswith("Removed =")
    assert [text.strip() for text in view.patterns()] == [text.strip() for text in before]
    assert button.inner_text() == "Exclude"
    view.find(".stage").click(position=view.at(6, 6))


def test_undo_of_the_graph_takes_an_exclusion_back(view):
    """Undo makes all nodes anew; the view shows the same picture again."""
    before, picture = view.patterns(), view.find("img").get_attribute("src")
    view.find(".stage").hover(position=view.at(6, 6))
    view.find(".exclude").first.click()
    assert view.patterns() != before
    tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    view.page.evaluate(f"() => {tracker}.undo()")
    view.page.wait_for_function("() => document.querySelector('.arrag-map img')?.naturalWidth")
    assert view.patterns() == before
    assert view.find("img").get_attribute("src") == picture


def test_both_layers_can_be_told(view):
    """Every source goes to the Retrieval Options of its own layer."""
    told = set()
    for column in range(2, 12):
        view.find(".stage").hover(position=view.at(6, column))
        for button in view.find(".exclude").all():
            before = view.patterns()
            button.click()
            after = view.patterns()
            told |= {i for i in range(LAYERS) if after[i] != before[i]}
            button.click()
        if len(told) == LAYERS:
            break
    assert told == set(range(LAYERS))


def test_what_the_view_does_can_be_seen_and_heard(view):
    """Roles and names that a screen reader needs."""
    assert (
        view.page.get_by_role("application", name="Picture of 12 rows and 12 columns").count() == 1
    )
    assert view.page.get_by_role("group", name="Retrieval map").count() == 1
    assert view.page.get_by_role("slider", name="Drawing order").count() == 1
    assert view.page.get_by_role("list", name="Candidates of the patch").count() == 1
    assert view.find("[role=status]").count() == 1


def test_the_view_is_not_saved(view):
    saved = view.page.evaluate("() => app.graph.serialize()")
    [node] = [node for node in saved["nodes"] if node["type"] == "ARRAG_RetrievalMap"]
    assert node["widgets_values"] == [16, 0.6]


def test_without_retrieval_options_it_says_so(view):
    """After the sampler has been disconnected."""
    view.find(".stage").hover(position=view.at(6, 6))
    cut = """() => {
        const node = app.graph.nodes.find((one) => one.type === 'ARRAG_DAiDSampler');
        const slot = node.inputs.findIndex((input) => input.name === 'retrieval');
        const link = app.graph.links.get(node.inputs[slot].link);
        node.disconnectInput(slot);
        return [link.origin_id, link.origin_slot, slot];
    }"""
    view.page.evaluate(cut)
    view.find(".exclude").first.click()
    assert view.text(".status").startswith("No Retrieval Options of layer ")


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes-2"])
def test_the_words_of_strangers_stay_words(open_page, screenshot, hostile_index, vue):
    page = open_page()
    view = View(page, vue)
    body = map_workflow()
    body[node_of(body, "ARRAG_LoadIndex")]["inputs"]["index"] = hostile_index
    view.run(body)
    names = set()
    for row, column in np.ndindex(10, 3):
        view.find(".stage").hover(position=view.at(row + 2, 3 * column + 2))
        names |= set(view.find(".candidates strong").all_inner_texts())
        assert view.find(".candidates :is(img, script, svg, a, iframe)").count() == 0
    assert any("<img src=x onerror=" in name for name in names)
    assert any("<script>" in name for name in names)
    view.find(".exclude").first.click()
    screenshot(page, f"map-hostile-{vue}")
    assert page.evaluate("() => window.hacked ?? null") is None
    assert view.errors == []
    page.close()
