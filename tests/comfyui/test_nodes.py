"""What ComfyUI knows of the extension: nodes, tooltips, templates, help pages."""

import json

import pytest

from scripts.comfyui import PACK, ROOT

MUTED = 2
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


def inputs_of(schema):
    """Name -> options of all inputs, in the order the browser shows and stores them."""
    return {
        name: [*spec, {}][1]
        for group in ("required", "optional")
        for name, spec in schema["input"].get(group, {}).items()
    }


def test_every_node_is_ours_and_explains_itself(object_info):
    assert len(object_info) >= 10
    for name, schema in object_info.items():
        assert schema["category"].split("/")[0] == "AR-RAG", name
        assert schema["description"], f"{name} has no description"
        silent = [key for key, options in inputs_of(schema).items() if not options.get("tooltip")]
        assert not silent, f"{name}: inputs without a tooltip: {silent}"


def test_labels_fit_into_the_narrow_column_of_nodes_2(client, object_info):
    """ComfyUI hands the frontend our labels; a longer one is cut off there."""
    labels = client.get("/api/i18n")["en"]["nodeDefs"]
    for node, schema in object_info.items():
        shorter = labels.get(node, {}).get("inputs", {})
        assert shorter.keys() <= inputs_of(schema).keys()
        for name in inputs_of(schema):
            label = shorter.get(name, {}).get("name", name)
            assert len(label) <= 11, f"{node}: {label} is cut off"


def test_pocket_comes_first(object_info):
    for node, field in (("ARRAG_LoadModel", "model"), ("ARRAG_LoadIndex", "index")):
        spec = object_info[node]["input"]["required"][field]
        options = spec[0] if isinstance(spec[0], list) else spec[1]["options"]
        assert options[0] == "pocket"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_template_is_served_with_its_thumbnail(client, name):
    assert name in client.get("/api/workflow_templates")[PACK]
    folder = f"/api/workflow_templates/{PACK}"
    assert client.get(f"{folder}/{name}.json")["nodes"]
    assert client.get_bytes(f"{folder}/{name}.jpg").startswith(b"\xff\xd8\xff")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_template_has_an_api_twin(name):
    """Same nodes and titles, but for muted ones, which the frontend does not queue; the browser
    test compares the values too."""
    shown = json.loads((ROOT / "workflows" / f"{name}.json").read_text("utf-8"))
    twin = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text("utf-8"))
    queued = (n for n in shown["nodes"] if n["type"] != "MarkdownNote" and n["mode"] != MUTED)
    nodes = {str(node["id"]): node for node in queued}
    assert {key: node["type"] for key, node in nodes.items()} == {
        key: node["class_type"] for key, node in twin.items()
    }
    assert {key: node["title"] for key, node in nodes.items()} == {
        key: node["_meta"]["title"] for key, node in twin.items()
    }


def test_every_node_has_a_help_page(client, object_info):
    for node in object_info:
        page = client.get_bytes(f"/extensions/{PACK}/docs/{node}.md").decode()
        assert page.startswith("# "), node
