"""Retrieval Options in a chain: several indexes, masks, spans, sources, in a real ComfyUI."""

import numpy as np
import pytest

from scripts.comfyui_client import node_of
from tests.comfyui.test_runs import SAMPLER, assert_one_sentence, pixels

OPTIONS = "ARRAG_RetrievalOptions"


def steered(workflow, *layers, prompt="x", seed=3):
    """The DAiD template with one Retrieval Options for each layer, chained."""
    sampler = {"prompt": prompt, "seed": seed}
    body = workflow("daid", ARRAG_DAiDSampler=sampler, ARRAG_LoadIndex={"only": ""})
    first = body[node_of(body, OPTIONS)]
    link = None
    for i, layer in enumerate(layers):
        node = {"class_type": OPTIONS, "inputs": first["inputs"] | layer}
        if link is not None:
            node["inputs"]["retrieval"] = link
        body[f"layer{i}"] = node
        link = [f"layer{i}", 0]
    body[node_of(body, SAMPLER)]["inputs"]["retrieval"] = link
    return body


def half(body, name, x):
    """A mask of the half of a picture that begins at column x of 32."""
    body[f"{name}-none"] = solid(0.0, 32)
    body[f"{name}-one"] = solid(1.0, 16)
    body[name] = {
        "class_type": "MaskComposite",
        "inputs": {
            "destination": [f"{name}-none", 0],
            "source": [f"{name}-one", 0],
            "x": x,
            "y": 0,
            "operation": "add",
        },
    }
    return [name, 0]


def solid(value, width):
    return {"class_type": "SolidMask", "inputs": {"value": value, "width": width, "height": 32}}


def drawn(client, body):
    result = client.run(body)
    assert result.ending == "execution_success", result.error
    return pixels(client, result.images()[0])


def test_two_subjects_are_drawn_each_in_its_own_region(client, workflow):
    body = steered(
        workflow,
        {"subject": "flamingo", "weight": 1.0, "mask": ["left", 0]},
        {"subject": "guitar", "weight": 1.0, "mask": ["right", 0]},
    )
    half(body, "left", 0), half(body, "right", 16)
    both = drawn(client, body)
    del body["layer1"]["inputs"]["mask"], body["layer0"]["inputs"]["mask"]
    body["layer0"]["inputs"]["weight"] = body["layer1"]["inputs"]["weight"] = 0.5
    assert not np.array_equal(both, drawn(client, body))
    body["layer0"]["inputs"]["weight"] = 0.6
    result = client.run(body)
    assert_one_sentence(result)
    assert "add up to 1.1" in result.error


@pytest.mark.parametrize(
    "changed",
    [
        {"start": 0.5},
        {"end": 0.5},
        {"curve": "ease in"},
        {"curve": "rows", "rows": "1 0"},
        {"max_distance": 0.05},
        {"exclude": "o"},
        {"include": "guitar"},
        {"copy_limit": 2},
        {"subject": "guitar"},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_every_widget_changes_the_picture(client, workflow, changed):
    plain = {"weight": 1.0}
    assert not np.array_equal(
        drawn(client, steered(workflow, plain)), drawn(client, steered(workflow, plain | changed))
    )


def test_what_cannot_be_used_is_one_sentence(client, workflow):
    for changed, message in (
        ({"exclude": "*"}, "leave none of the"),
        ({"curve": "rows"}, "the curve is rows and 0 row weights"),
        ({"rows": "1 x", "curve": "rows"}, "rows holds 'x'"),
        ({"subject": "no such thing"}, "no caption, name or origin"),
    ):
        result = client.run(steered(workflow, changed))
        assert_one_sentence(result)
        assert message in result.error
    body = steered(workflow, {"mask": ["batch", 0]})
    body["picture"] = {"class_type": "MaskToImage", "inputs": {"mask": ["one", 0]}}
    body["one"] = solid(1.0, 32)
    body["batch"] = {
        "class_type": "ImageToMask",
        "inputs": {"image": ["two", 0], "channel": "red"},
    }
    body["two"] = {
        "class_type": "RepeatImageBatch",
        "inputs": {"image": ["picture", 0], "amount": 2},
    }
    result = client.run(body)
    assert_one_sentence(result)
    assert "is a batch of 2; connect a single mask" in result.error
    body["one"]["inputs"]["value"] = 0.0
    body["layer0"]["inputs"]["mask"] = ["one", 0]
    result = client.run(body)
    assert_one_sentence(result)
    assert "the region is empty" in result.error
    assert client.run(workflow("daid")).ending == "execution_success"


@pytest.mark.parametrize("setting", [{"border_keys": "out"}, {"distances": "mean"}])
def test_settings_of_masked_models_are_refused_for_others(client, workflow, setting):
    result = client.run(steered(workflow, {"subject": "guitar"} | setting))
    assert_one_sentence(result)
    assert "draws in raster order and knows all neighbours of a patch" in result.error
