"""The DAiD template in a real browser: opened, run, picture seen."""

import json
from importlib.util import find_spec

import pytest

from scripts.comfyui import PACK, ROOT
from scripts.freeze import FROZEN
from scripts.make_twins import api_prompt

SAVED = "() => app.graph.nodes.find((node) => node.type === 'SaveImage')?.imgs?.[0]?.naturalWidth"
RENDERED = """() => [...document.querySelectorAll('[data-node-id]')].map((element) => {
    const { left, top, right, bottom } = element.getBoundingClientRect();
    return { id: element.dataset.nodeId, left, top, right, bottom };
})"""
PROMPT = "async () => (await app.graphToPrompt()).output"
HIDE_DIALOG = "() => document.querySelectorAll('.p-dialog-mask').forEach((one) => one.remove())"
"""The templates' dialog, which opens for a new user, covers what a screenshot should show."""
FROZEN_WORKFLOWS = [
    pytest.param(path.parent.parent.name, path.stem, id=f"{path.parent.parent.name}-{path.stem}")
    for path in sorted(FROZEN.glob("*/api/*.json"))
]


def open_template(page, name):
    """Choose a template as a person does: the dialog opens by itself for a new user."""
    if not page.get_by_text("All Templates").first.is_visible():
        page.get_by_text("Templates", exact=True).first.click()
    page.get_by_text(PACK, exact=True).first.click()
    page.get_by_test_id(f"template-workflow-{name}").click()
    page.wait_for_function("() => app.graph.nodes.some((node) => node.type.startsWith('ARRAG_'))")


def test_template_draws_a_picture(page, client):
    open_template(page, "daid")
    assert page.get_by_text("Missing Node Types").count() == 0
    assert page.evaluate("() => app.graph.nodes.filter((node) => node.has_errors).length") == 0
    registered = "() => app.graph.nodes.every((node) => LiteGraph.registered_node_types[node.type])"
    assert page.evaluate(registered)
    page.get_by_test_id("queue-button").first.click()
    page.wait_for_function(SAVED)
    assert page.evaluate(SAVED) >= 64
    assert page.evaluate("() => app.lastNodeErrors ?? {}") == {}


@pytest.fixture(scope="module")
def shared(open_page):
    """One page for tests that load workflows into it: opening it takes longer than they do."""
    shown = open_page()
    yield shown
    shown.close()


def show(page, workflow, nodes_2):
    """Load a workflow into one of the two renderers."""
    setting = "(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
    page.evaluate(setting, nodes_2)
    page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    page.wait_for_function(f"() => app.graph.nodes.length === {len(workflow['nodes'])}")
    page.evaluate(HIDE_DIALOG)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "workflows").glob("*.json")))
def test_template_is_its_api_twin_and_opens_well_in_both_renderers(shared, screenshot, name):
    template = json.loads((ROOT / "workflows" / f"{name}.json").read_text("utf-8"))
    twin = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text("utf-8"))
    show(shared, template, nodes_2=False)
    assert shared.evaluate(PROMPT) == twin
    assert overlaps(template["nodes"]) == []
    shared.wait_for_function("() => app.canvas.ds.scale > 0")
    assert not shared.evaluate("() => app.canvas.low_quality")  # it draws no text below a zoom
    assert shared.evaluate("() => app.canvas.ds.scale") > 0.6
    screenshot(shared, f"{name}-classic")
    boxes = rendered_boxes(shared, template)
    screenshot(shared, f"{name}-nodes-2")
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert [(a["id"], b["id"]) for a, b in pairs if rendered_overlap(a, b)] == []


def rendered_boxes(page, workflow):
    """As the second renderer shows them: it scales sizes and positions by itself."""
    show(page, workflow, nodes_2=True)
    count = len(workflow["nodes"])
    page.wait_for_function(f"() => document.querySelectorAll('[data-node-id]').length === {count}")
    page.wait_for_timeout(1000)  # boxes grow to their contents
    return page.evaluate(RENDERED)


@pytest.mark.parametrize(("release", "name"), FROZEN_WORKFLOWS)
def test_a_frozen_workflow_loads_as_it_was(shared, release, name):
    """Every value that the release stored is where it was; what came later has its default."""
    saved = json.loads((FROZEN / release / f"{name}.json").read_text("utf-8"))
    twin = json.loads((FROZEN / release / "api" / f"{name}.json").read_text("utf-8"))
    loaded = api_prompt(shared, saved)
    assert loaded.keys() == twin.keys()
    for node, body in twin.items():
        assert loaded[node]["class_type"] == body["class_type"]
        kept = {key: loaded[node]["inputs"].get(key) for key in body["inputs"]}
        assert kept == body["inputs"]


def rendered_overlap(a, b, slack=1):
    return (
        a["left"] < b["right"] - slack
        and b["left"] < a["right"] - slack
        and a["top"] < b["bottom"] - slack
        and b["top"] < a["bottom"] - slack
    )


def overlaps(nodes, title=30):
    """Titles of pairs of nodes that lie on each other; a node's title bar is above its position."""
    boxes = [
        (x, y - title, x + width, y + height, node["title"])
        for node in nodes
        for (x, y), (width, height) in [(node["pos"], node["size"])]
    ]
    return [
        (a[4], b[4])
        for i, a in enumerate(boxes)
        for b in boxes[:i]
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]


ADD_SAVE = """(signer) => {
    const sampler = app.graph.nodes.find((node) => node.type === 'ARRAG_DAiDSampler');
    app.graph.nodes.filter((node) => node.type === 'SaveImage').forEach((n) => app.graph.remove(n));
    const save = LiteGraph.createNode('ARRAG_SaveWithAttribution');
    save.pos = [sampler.pos[0] + 600, sampler.pos[1]];
    app.graph.add(save);
    const output = (name) => sampler.outputs.findIndex((one) => one.name === name);
    sampler.connect(output('image'), save, 'image');
    sampler.connect(output('trace'), save, 'trace');
    save.widgets.find((widget) => widget.name === 'content_credentials').value = signer;
    return String(save.id);
}"""
DROP = """async ({ url }) => {
    app.graph.clear();
    const bytes = await (await fetch(url)).blob();
    await app.handleFile(new File([bytes], 'dropped.png', { type: 'image/png' }));
    return app.graph.nodes.map((node) => node.type);
}"""


@pytest.mark.parametrize("renderer", ["classic", "nodes 2"])
def test_save_with_attribution_shows_its_picture_which_can_be_dropped(page, renderer):
    signer = "own certificate" if find_spec("c2pa") else "off"
    page.evaluate(
        "(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)",
        renderer == "nodes 2",
    )
    workflow = json.loads((ROOT / "workflows" / "daid.json").read_text("utf-8"))
    page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    node = page.evaluate(ADD_SAVE, signer)
    types = sorted(page.evaluate("() => app.graph.nodes.map((node) => node.type)"))
    page.evaluate("() => app.queuePrompt(0)")  # a dialog may cover the button
    saved = f"() => app.nodeOutputs[{node}]?.images?.[0]"
    image = page.wait_for_function(saved).json_value()
    assert image["filename"].startswith("AR-RAG_")
    if renderer == "classic":
        page.wait_for_function(f"() => app.graph.getNodeById({node}).imgs?.[0]?.naturalWidth >= 64")
    else:
        shown = page.locator(f"[data-node-id='{node}'] img[src*='AR-RAG_']")
        shown.first.wait_for()
    url = f"/view?filename={image['filename']}&subfolder={image['subfolder']}&type=output"
    assert sorted(page.evaluate(DROP, {"url": url})) == types
