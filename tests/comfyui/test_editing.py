"""Editing in ComfyUI: tokens and a mask into a sampler, and the original's pixels outside it."""

import numpy as np
import pytest
from PIL import Image

from scripts.comfyui_client import node_of
from tests.comfyui.test_handed import refused
from tests.comfyui.test_runs import pixels

PLAIN = "ARRAG_Sampler"
EDIT = {"seed": 7, "temperature": 1.0}


@pytest.fixture
def editing(workflow):
    """Draws a picture, encodes it, and draws its lower half anew; `change` are inputs of the
    second sampler."""

    def make(**change):
        body = workflow("baseline", **{PLAIN: {"seed": 110}})
        model, first = [node_of(body, "ARRAG_LoadModel"), 0], node_of(body, PLAIN)

        def add(name, class_type, /, **inputs):
            body[name] = {"class_type": class_type, "inputs": inputs}

        add("encode", "ARRAG_VQEncode", model=model, image=[first, 0])
        add("black", "SolidMask", value=0.0, width=96, height=96)
        add("white", "SolidMask", value=1.0, width=96, height=48)
        both = {"destination": ["black", 0], "source": ["white", 0]}
        add("mask", "MaskComposite", x=0, y=48, operation="add", **both)
        told = {**body[first]["inputs"], **EDIT, "tokens": ["encode", 0], "mask": ["mask", 0]}
        add("edit", PLAIN, **{k: v for k, v in (told | change).items() if v is not None})
        both = {"destination": ["encode", 1], "source": ["edit", 0], "mask": ["mask", 0]}
        add("back", "ImageCompositeMasked", x=0, y=0, resize_source=False, **both)
        add("decode", "ARRAG_VQDecode", model=model, tokens=["encode", 0])
        for source, output in ((first, 0), ("encode", 1), ("edit", 0), ("back", 0), ("decode", 0)):
            add(f"show {source}", "PreviewImage", images=[source, output])
        return body

    return make


def shown(client, body, *sources):
    result = client.run(body)
    assert result.ending == "execution_success", result.error
    return [pixels(client, result.images(f"show {one}")[0]) for one in sources]


def test_the_lower_half_is_drawn_anew_and_the_rest_is_the_original(client, editing):
    crop, back, decoded = shown(client, editing(), "encode", "back", "decode")
    assert np.array_equal(back[:48], crop[:48])
    assert not np.array_equal(back[48:], decoded[48:])


def test_redraw_0_changes_nothing_and_a_share_changes_less(client, editing):
    drawn = {}
    for redraw in (0.0, 0.2, 1.0):
        edited, decoded = shown(client, editing(redraw=redraw, mask=None), "edit", "decode")
        drawn[redraw] = np.abs(edited.astype(int) - decoded).mean()
    assert drawn[0.0] == 0
    assert 0 < drawn[0.2] < drawn[1.0]


def test_a_loaded_picture_comes_back_to_the_last_pixel(client, server, editing):
    """Of the model's size: nothing is resized."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    Image.fromarray(noise).save(server.base / "input" / "noise.png")
    body = editing()
    body["load"] = {"class_type": "LoadImage", "inputs": {"image": "noise.png"}}
    body["encode"]["inputs"]["image"] = ["load", 0]
    crop, back = shown(client, body, "encode", "back")
    assert np.array_equal(crop, noise)
    assert np.array_equal(back[:48], noise[:48])


BAD = {
    "no tokens": ({"tokens": None}, "a mask is connected, but no tokens of a picture"),
    "redraw alone": ({"tokens": None, "mask": None, "redraw": 0.5}, "redraw is 0.5, but there"),
    "empty mask": ({"mask": ["black", 0]}, "the mask is empty"),
    "a constant": ({"tokens": "pocket"}, "tokens is 'pocket'; connect the tokens"),
    "no mask": ({"mask": 5}, "mask is 5; connect a mask"),
    "redraw": ({"redraw": ["number", 0]}, "redraw is 7.0; choose 0 to 1"),
    "batch": ({"tokens": ["three", 1], "batch": 2}, "3 pictures are given to edit, and 2 are to"),
}


@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=BAD)
def test_what_cannot_be_edited_is_one_sentence(client, editing, change, said):
    body = editing(**change)
    body["number"] = {"class_type": "PrimitiveFloat", "inputs": {"value": 7.0}}
    first = body["encode"]["inputs"]["image"][0]
    told = {**body[first]["inputs"], "batch": 3}
    body["three"] = {"class_type": PLAIN, "inputs": told}
    for name in ("decode", "back", "encode", first):
        body.pop(f"show {name}")
    assert said in refused(client.run(body))
