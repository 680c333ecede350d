"""Retrieval Map in a real ComfyUI: its outputs and the files of its view."""

import io
import json
import urllib.parse

import numpy as np
import pytest
from PIL import Image

from scripts.comfyui_client import node_of

SAMPLER, OPTIONS = "ARRAG_DAiDSampler", "ARRAG_RetrievalOptions"


@pytest.fixture
def mapped(workflow):
    """Function: the DAiD template of some pictures, with a map whose outputs are shown."""

    def made(batch=1, **inputs):
        body = workflow("daid", **{SAMPLER: {"batch": batch, "seed": 3}, OPTIONS: {"weight": 0.8}})
        sampler = node_of(body, SAMPLER)
        links = {"trace": [sampler, 2], "image": [sampler, 0]}
        values = {"larger_than": 16, "opacity": 0.6}
        body["map"] = {"class_type": "ARRAG_RetrievalMap", "inputs": links | values | inputs}
        shown = {"heat": ["PreviewImage", "images", 0], "sheet": ["PreviewImage", "images", 4]}
        shown |= {"table": ["PreviewAny", "source", 2], "score": ["PreviewAny", "source", 3]}
        shown |= {"mask": ["MaskToImage", "mask", 1]}
        for name, (kind, field, output) in shown.items():
            body[name] = {"class_type": kind, "inputs": {field: ["map", output]}}
        body["influence"] = {"class_type": "PreviewImage", "inputs": {"images": ["mask", 0]}}
        body["drawn"] = {"class_type": "PreviewImage", "inputs": {"images": [sampler, 0]}}
        return body

    return made


def pictures(client, result, node):
    files = [client.image(reference) for reference in result.images(node)]
    return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files]


def alike(one, other):
    """ComfyUI cuts fractions of a pixel's value off, we round them."""
    return np.abs(one.astype(int) - other.astype(int)).max() <= 1


def view_files(client, result):
    """(data, picture, thumbnails) of each picture."""

    def read(name):
        query = urllib.parse.urlencode({"filename": name, "type": "temp"})
        return client.get_bytes(f"/view?{query}")

    for files in result.outputs["map"]["arrag_map"]:
        data = json.loads(read(files["data"]))
        yield data, *(Image.open(io.BytesIO(read(files[n]))) for n in ("picture", "thumbnails"))


def test_the_outputs_belong_together(client, mapped):
    result = client.run(mapped(batch=2))
    assert result.ending == "execution_success", result.error
    [table] = result.outputs["table"]["text"]
    [score] = result.outputs["score"]["text"]
    assert table.startswith("Picture 1\n")
    assert "Picture 2\n" in table
    views = list(view_files(client, result))
    assert float(score) == pytest.approx(np.mean([data["score"] for data, *_ in views]), abs=1e-4)
    masks, drawn = (pictures(client, result, name) for name in ("influence", "drawn"))
    assert len(pictures(client, result, "heat")) == len(pictures(client, result, "sheet")) == 2
    for (data, picture, thumbnails), mask, pixels in zip(views, masks, drawn, strict=True):
        assert alike(np.asarray(picture.convert("RGB")), pixels)
        height, width = data["grid"]
        cell = mask[:: len(mask) // height, :: mask.shape[1] // width, 0] / 255
        assert np.allclose(cell.ravel(), data["owed"], atol=0.01)
        assert thumbnails.width == data["columns"] * data["cell"][0]
        assert len(data["candidates"]) == height * width


def test_opacity_and_size_do_what_they_say(client, mapped):
    body = mapped(opacity=0.0, larger_than=144)
    result = client.run(body)
    assert alike(*(pictures(client, result, n)[0] for n in ("heat", "drawn")))
    assert float(result.outputs["score"]["text"][0]) == 0
    body["map"]["inputs"] |= {"opacity": 1.0, "larger_than": 0}
    result = client.run(body)
    assert len(np.unique(pictures(client, result, "heat")[0].reshape(-1, 3), axis=0)) <= 144
    assert float(result.outputs["score"]["text"][0]) > 0


def test_an_enlarged_picture_will_do(client, mapped):
    body = mapped()
    scale = {"upscale_method": "lanczos", "width": 300, "height": 300, "crop": "disabled"}
    large = {"image": [node_of(body, SAMPLER), 0]} | scale
    body["large"] = {"class_type": "ImageScale", "inputs": large}
    body["map"]["inputs"]["image"] = ["large", 0]
    result = client.run(body)
    assert pictures(client, result, "heat")[0].shape == (300, 300, 3)
    assert pictures(client, result, "influence")[0].shape == (300, 300, 3)


def test_a_drawing_without_retrieval_has_an_empty_map(client, mapped):
    body = mapped()
    del body[node_of(body, SAMPLER)]["inputs"]["retrieval"]
    result = client.run(body)
    assert result.ending == "execution_success", result.error
    assert "Nothing is owed to a source." in result.outputs["table"]["text"][0]
    assert not pictures(client, result, "influence")[0].any()


def test_pictures_of_another_number_are_one_sentence(client, mapped):
    body = mapped(batch=2)
    first = {"image": [node_of(body, SAMPLER), 0], "batch_index": 0, "length": 1}
    body["first"] = {"class_type": "ImageFromBatch", "inputs": first}
    body["map"]["inputs"]["image"] = ["first", 0]
    result = client.run(body)
    assert result.error.startswith("the trace is of 2 pictures and image has 1; connect the image")
    body["map"]["inputs"]["image"] = first["image"]
    assert client.run(body).ending == "execution_success"
