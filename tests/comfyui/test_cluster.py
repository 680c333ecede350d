"""An index in shards in a real ComfyUI: searched here, and on a Ray cluster of this machine."""

import io

import numpy as np
import pytest
from PIL import Image

from arrag_engine import shipped
from arrag_engine.index import load_index, save_shards
from scripts.comfyui import Server, mount
from scripts.comfyui_client import Client
from tests.index.test_lookup import parts_of


@pytest.fixture
def shards(tmp_path):
    """A base directory of ComfyUI with an index in shards."""
    place = tmp_path / "models" / "arrag" / "indexes"
    place.mkdir(parents=True)
    mount(tmp_path)
    index = load_index(shipped.INDEXES / "pocket.safetensors")
    save_shards(place / "shards.json", parts_of(index, (0, 300, len(index.tokens))))
    return tmp_path


def results(comfyui, base, cluster, bodies):
    """What a ComfyUI that knows a cluster makes of some workflows: pixels or the error."""
    server = Server(comfyui, base, options=["--cpu"], threads=1)
    server.environment |= {"ARRAG_CLUSTER": cluster, "RAY_AUTH_MODE": "disabled"}
    with server, Client(server.url) as client:
        for body in bodies:
            result = client.run(body)
            if result.ending == "execution_success":
                [image] = result.images()
                yield np.array(Image.open(io.BytesIO(client.image(image))))
            else:
                yield result.error


@pytest.mark.slow
def test_a_cluster_draws_what_this_machine_draws(comfyui, shards, workflow):
    pytest.importorskip("ray", reason="the package ray is not installed")
    whole = workflow("daid", ARRAG_LoadIndex={"index": "pocket"})
    parts = workflow("daid", ARRAG_LoadIndex={"index": "shards.json"})
    wanted, here = results(comfyui, shards, "", [whole, parts])
    [there] = results(comfyui, shards, "local", [parts])
    assert np.array_equal(wanted, here)
    assert np.array_equal(wanted, there)


@pytest.mark.slow
def test_without_the_cluster_it_is_one_sentence(comfyui, shards, workflow):
    pytest.importorskip("ray", reason="the package ray is not installed")
    whole = workflow("daid", ARRAG_LoadIndex={"index": "pocket"})
    parts = workflow("daid", ARRAG_LoadIndex={"index": "shards.json"})
    refused, drawn = results(comfyui, shards, "127.0.0.1:9", [parts, whole])
    assert "there is no Ray cluster at '127.0.0.1:9' that answers" in refused
    assert "\n" not in refused
    assert drawn.shape == (384, 384, 3)
