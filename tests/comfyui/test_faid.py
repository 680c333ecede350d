"""FAiD in a real ComfyUI: adapters come and go, the model stays."""

import io

import numpy as np
import pytest
from PIL import Image

from arrag_engine.faid import AdapterConfig
from arrag_engine.shipped import MODELS
from scripts.comfyui_client import Refused, node_of
from tests.tiny import write_adapter, write_tiny

POCKET = MODELS / "pocket.safetensors"
SMALL = AdapterConfig((0, 2), (1, 2), rank=2, alpha=4.0, head=False)
SEED = 210
DRAWN = {"seed": SEED, "prompt": "a red car", "cfg": 2.0, "temperature": 0.5}


@pytest.fixture(scope="module", autouse=True)
def adapters(server, tmp_path_factory):
    """Two random adapters for the pocket model and one for another."""
    folder = server.base / "models" / "arrag" / "adapters"
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("one", "two")):
        write_adapter(folder / f"{name}.safetensors", POCKET, SMALL, seed, scale=0.05)
    other = write_tiny(tmp_path_factory.mktemp("other") / "other-base.safetensors")
    write_adapter(folder / "stranger.safetensors", other)
    (folder / "damaged.safetensors").write_bytes(b"not an adapter")


@pytest.fixture
def faid_body(workflow):
    """Function: the DAiD workflow with an adapter and the FAiD Sampler instead."""

    def make(adapter="one.safetensors", weight=0.0, **settings):
        body = workflow("daid", ARRAG_RetrievalOptions={"weight": weight})
        sampler = body[node_of(body, "ARRAG_DAiDSampler")]
        sampler["class_type"] = "ARRAG_FAiDSampler"
        sampler["inputs"] |= {"strength": 1.0, "candidates": 10, "semantics": "step"} | DRAWN
        sampler["inputs"] |= settings
        if adapter is not None:
            model = sampler["inputs"]["model"]
            body["adapter"] = {
                "class_type": "ARRAG_LoadAdapter",
                "inputs": {"model": model, "adapter": adapter},
            }
            sampler["inputs"]["model"] = ["adapter", 0]
        return body

    return make


@pytest.fixture
def picture(client):
    """Function: the picture that a workflow draws [H, W, 3]."""

    def draw(body):
        result = client.run(body)
        assert result.ending == "execution_success", result.error
        [reference] = result.images()
        return np.asarray(Image.open(io.BytesIO(client.image(reference))).convert("RGB"))

    return draw


def test_swapping_adapters_on_a_cached_model_leaves_no_trace(workflow, faid_body, picture, client):
    plain = workflow("baseline", ARRAG_Sampler=DRAWN)
    base, one = picture(plain), picture(faid_body("one.safetensors"))
    two = picture(faid_body("two.safetensors"))
    assert not np.array_equal(one, two)
    assert not np.array_equal(base, one)
    body = faid_body("one.safetensors", preview_every=1)  # not from the cache
    result = client.run(body)
    assert node_of(body, "ARRAG_LoadModel") in result.cached
    assert np.array_equal(picture(body), one)
    again = workflow("baseline", ARRAG_Sampler=DRAWN | {"preview_every": 1})
    assert np.array_equal(picture(again), base)


def test_strength_zero_is_the_baseline(workflow, faid_body, picture):
    plain = picture(workflow("baseline", ARRAG_Sampler=DRAWN))
    assert np.array_equal(picture(faid_body(strength=0.0)), plain)


def test_both_methods_at_once_windows_and_batches_run(faid_body, client):
    result = client.run(faid_body(weight=0.3, window=8, batch=2, strength=1.5))
    assert result.ending == "execution_success", result.error
    assert len(result.images()) == 2


def test_without_retrieval_the_adapter_hears_nothing_and_draws(faid_body, picture):
    body = faid_body()
    del body[node_of(body, "ARRAG_FAiDSampler")]["inputs"]["retrieval"]
    assert picture(body).std() > 0


def test_interrupt_stops_it(faid_body, client):
    stopped = []

    def stop_once(message):
        if message.kind == "progress" and not stopped:
            stopped.append(message.data)
            client.interrupt()

    result = client.run(faid_body(batch=16, seed=211), on_message=stop_once)
    assert result.ending == "execution_interrupted"
    assert client.run(faid_body(seed=211)).ending == "execution_success"


def test_a_model_without_blenders_needs_an_adapter(faid_body, client):
    result = client.run(faid_body(adapter=None))
    assert result.ending == "execution_error"
    assert (
        "pocket has no FAiD blenders; connect it through a Load FAiD Adapter node" in result.error
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [("stranger", "trained on 'other-base', this model is 'pocket'"), ("damaged", "truncated")],
)
def test_an_adapter_that_does_not_fit_is_one_sentence(faid_body, client, name, words):
    result = client.run(faid_body(f"{name}.safetensors"))
    assert result.ending == "execution_error"
    assert words in result.error
    assert "\n" not in result.error


@pytest.mark.parametrize("name", ["../one.safetensors", "/etc/passwd", "nothing-like-it"])
def test_names_that_are_not_on_offer_are_refused(faid_body, client, name):
    with pytest.raises(Refused) as refused:
        client.queue(faid_body(name))
    assert "adapter" in refused.value.details["node_errors"]


@pytest.mark.parametrize(
    ("field", "value"), [("strength", -0.1), ("strength", 2.1), ("candidates", -1)]
)
def test_values_out_of_range_are_refused(faid_body, client, field, value):
    with pytest.raises(Refused):
        client.queue(faid_body(**{field: value}))


@pytest.mark.parametrize(("field", "value"), [("strength", float("nan")), ("semantics", "x")])
def test_what_comfyui_lets_through_is_refused_by_us(faid_body, client, field, value):
    result = client.run(faid_body(**{field: value}))
    assert result.ending == "execution_error"
    assert field.removesuffix("s") in result.error
