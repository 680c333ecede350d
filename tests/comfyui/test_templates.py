"""What each template promises, in a real ComfyUI."""

import re

import numpy as np
import pytest

from scripts.comfyui import ROOT
from scripts.comfyui_client import node_of
from scripts.recognise import things_on
from tests.comfyui.test_runs import SAMPLER, pixels


def run(client, body):
    result = client.run(body)
    assert result.ending == "execution_success", result.error
    return result


def saved(client, body, *titles):
    """The pictures of the nodes of some titles, as drawn: not enlarged."""
    nodes = {one["_meta"]["title"]: key for key, one in body.items()}
    for node in (nodes[title] for title in titles):
        source, _ = body[node]["inputs"]["images"]
        if body[source]["class_type"].startswith("ImageScale"):
            body[node]["inputs"]["images"] = body[source]["inputs"]["image"]
    result = run(client, body)
    return [pixels(client, result.images(nodes[title])[0]) for title in titles]


@pytest.mark.parametrize("name", ["redraw_region", "masked_inpaint"])
def test_a_redrawn_region_changes_no_pixel_outside_the_mask(client, workflow, name):
    before, after = saved(client, workflow(name), "Before", "After")
    inside = np.zeros(before.shape[:2], bool)
    inside[24:, 48:] = True
    assert np.array_equal(before[~inside], after[~inside])
    assert np.abs(before[inside].astype(int) - after[inside]).mean() > 5


def test_outpaint_keeps_the_picture_and_adds_to_its_right(client, workflow):
    before, after = saved(client, workflow("outpaint"), "Before", "After")
    assert after.shape == (96, 144, 3)
    kept = after[:, :80]  # what is added shows in the last decoded patches
    assert np.abs(before[:, :80].astype(int) - kept).mean() < 5
    assert after[:, 96:].std() > 5


def test_continue_sketch_keeps_what_is_given(client, workflow):
    sketch, continued = saved(client, workflow("continue_sketch"), "Sketch", "Continued")
    assert (sketch[48:] == 255).all()
    assert np.abs(sketch[:40].astype(int) - continued[:40]).mean() < 10  # went through the tokens
    assert continued[48:].std() > 20


def test_image_to_image_keeps_some_of_the_picture(client, workflow):
    before, after = saved(client, workflow("image_to_image"), "Before", "After")
    difference = np.abs(before.astype(int) - after)
    assert difference.mean() > 1
    assert (difference.max(axis=2) < 16).mean() > 0.2


def test_a_copy_limit_copies_less(client, workflow):
    body = workflow("copy_limit")
    maps = [key for key, one in body.items() if one["class_type"] == "ARRAG_RetrievalMap"]
    for key in maps:
        body[f"score {key}"] = {"class_type": "PreviewAny", "inputs": {"source": [key, 3]}}
    result = run(client, body)
    without, limited = (float(result.outputs[f"score {key}"]["text"][0]) for key in maps)
    assert without > 0.5
    assert limited < without / 2


@pytest.mark.parametrize(
    ("name", "things"),
    [
        ("two_subjects", {"flamingo", "guitar"}),
        ("style", {"dinosaur"}),
        ("masked", {"lion"}),
        ("masked_daid", {"flamingo"}),
    ],
)
def test_the_detector_finds_what_a_template_promises(client, workflow, tmp_path, name, things):
    body = workflow(name)
    [reference] = run(client, body).images()
    (tmp_path / "drawn.png").write_bytes(client.image(reference))
    assert things <= {thing.name for thing in things_on(tmp_path / "drawn.png")}


def test_attribution_writes_the_credits_beside_the_picture(server, client, workflow):
    body = workflow("attribution")
    node = node_of(body, "ARRAG_SaveWithAttribution")
    [picture] = run(client, body).images(node)
    beside = server.base / "output" / picture["filename"].replace(".png", ".txt")
    assert len(re.findall(r"unseen/\d+-a-flamingo", beside.read_text("utf-8"))) > 1


def test_refine_runs_without_a_checkpoint(workflow):
    """Its second step is muted: the frontend queues none of it."""
    kinds = {one["class_type"] for one in workflow("refine").values()}
    assert SAMPLER in kinds
    assert not kinds & {"CheckpointLoaderSimple", "KSampler", "VAEEncode"}


def test_every_template_has_a_thumbnail_and_a_note():
    for path in (ROOT / "workflows").glob("*.json"):
        assert path.with_suffix(".jpg").is_file(), path
        assert "MarkdownNote" in path.read_text("utf-8"), path
