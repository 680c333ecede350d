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


def saved(client, body, title):
    """The picture of the node of a title, as drawn: not enlarged."""
    [node] = [key for key, one in body.items() if one["_meta"]["title"] == title]
    source, _ = body[node]["inputs"]["images"]
    if body[source]["class_type"] == "ImageScale":
        body[node]["inputs"]["images"] = body[source]["inputs"]["image"]
    return pixels(client, run(client, body).images(node)[0])


def test_redraw_region_changes_no_pixel_outside_the_mask(client, workflow):
    body = workflow("redraw_region")
    before, after = saved(client, body, "Before"), saved(client, body, "After")
    inside = np.zeros(before.shape[:2], bool)
    inside[24:, 48:] = True
    assert np.array_equal(before[~inside], after[~inside])
    assert np.abs(before[inside].astype(int) - after[inside]).mean() > 5


def test_continue_sketch_keeps_what_is_given(client, workflow):
    body = workflow("continue_sketch")
    sketch, continued = saved(client, body, "Sketch"), saved(client, body, "Continued")
    assert (sketch[48:] == 255).all()
    assert np.abs(sketch[:40].astype(int) - continued[:40]).mean() < 10  # went through the tokens
    assert continued[48:].std() > 20


def test_image_to_image_keeps_some_of_the_picture(client, workflow):
    body = workflow("image_to_image")
    before, after = saved(client, body, "Before"), saved(client, body, "After")
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
    ("name", "things"), [("two_subjects", {"flamingo", "guitar"}), ("style", {"dinosaur"})]
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
