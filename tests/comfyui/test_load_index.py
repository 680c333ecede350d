"""Load Patch Index in a real ComfyUI: other keys, some pictures only, what it says."""

import numpy as np
import pytest

from arrag_engine import shipped
from arrag_engine.index import KeySpec, load_index, remove_pictures, save_index, save_shards
from arrag_engine.index.edit import SearchChoice
from scripts.comfyui_client import node_of

LOADER = "ARRAG_LoadIndex"
SAMPLER = "ARRAG_DAiDSampler"


@pytest.fixture(scope="module")
def pocket():
    return load_index(shipped.INDEXES / "pocket.safetensors")


@pytest.fixture(scope="module")
def fixed(server, pocket):
    """The name of an index whose keys can no longer be changed."""
    place = server.base / "models" / "arrag" / "indexes"
    place.mkdir(parents=True, exist_ok=True)
    path = place / "fixed.safetensors"
    save_index(remove_pictures(pocket, np.arange(100, 900), SearchChoice("ivf")), path)
    yield path.name
    path.unlink()


def told(client, **inputs):
    """What the loader says about an index."""
    inputs = {"index": "pocket"} | inputs
    result = client.run(
        {
            "load": {"class_type": LOADER, "inputs": inputs},
            "show": {"class_type": "PreviewAny", "inputs": {"source": ["load", 1]}},
        }
    )
    assert result.ending == "execution_success", result.error
    return result.outputs["show"]["text"][0]


def refused(client, **inputs):
    show = {"class_type": "PreviewAny", "inputs": {"source": ["load", 1]}}
    inputs = {"index": "pocket"} | inputs
    result = client.run({"load": {"class_type": LOADER, "inputs": inputs}, "show": show})
    assert result.ending == "execution_error"
    assert "\n" not in result.error
    return result.error


def test_an_older_workflow_that_knows_only_the_name_still_runs(client, pocket):
    lines = told(client).splitlines()
    assert lines[0].startswith(f"pocket: {len(pocket.sources)} pictures, ")
    assert lines[1] == f"{pocket.size} patches to look up"
    counts = pocket.sources.licence_counts()
    assert lines[2] == f"licences: {', '.join(f'{name}: {n}' for name, n in counts.items())}"
    spec = pocket.spec
    assert lines[3].endswith(
        f"neighbours {spec.neighborhood}, borders {spec.borders}, keys {spec.space}, "
        f"position weight {spec.position_weight:g}"
    )
    assert lines[4] == "flat search, recall 1.000 when built"


def test_keys_are_changed_as_chosen(client, pocket):
    spec = KeySpec("causal-8", "zero", "codebook", 0.5)
    inputs = {"neighborhood": "causal-8", "borders": "zero", "key_space": "codebook"}
    said = told(client, **inputs, position_weight=0.5)
    assert f"{pocket.rekeyed(spec).size} patches to look up" in said
    assert "neighbours causal-8, borders zero, keys codebook, position weight 0.5" in said


def test_only_matching_pictures_are_looked_up(client, pocket):
    matching = pocket.matching("castle")
    said = told(client, only=" Castle ")
    assert f"{matching.size} patches to look up, of {len(matching.images)} matching" in said
    assert "matches 'blorp'; choose another pattern" in refused(client, only="blorp")


@pytest.mark.parametrize("inputs", [{"only": "castle"}, {"position_weight": 4.0}], ids=str)
def test_a_picture_is_drawn_with_what_was_chosen(client, workflow, inputs):
    strong = {"ARRAG_RetrievalOptions": {"weight": 1.0}, SAMPLER: {"seed": 31}}
    plain = workflow("daid", **strong)
    changed = workflow("daid", **strong, **{LOADER: inputs})
    results = [client.run(body) for body in (plain, changed)]
    assert [r.ending for r in results] == ["execution_success"] * 2
    assert node_of(changed, LOADER) in results[1].executed
    one, other = (client.image(r.images()[0]) for r in results)
    assert one != other


def test_fixed_keys_are_not_changed(client, fixed):
    assert "ivf search" in told(client, index=fixed)
    assert "ivf structure are fixed" in refused(client, index=fixed, neighborhood="causal-4")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("neighborhood", "ring"),
        ("borders", "wrap"),
        ("key_space", "pixels"),
        ("position_weight", float("nan")),
        ("position_weight", -0.5),
    ],
)
def test_what_comfyui_lets_through_is_refused_by_us(client, field, value):
    assert str(value) in refused(client, **{field: value})


def test_an_index_in_shards_is_on_offer_and_told_like_another(client, server, pocket):
    place = server.base / "models" / "arrag" / "indexes"
    place.mkdir(parents=True, exist_ok=True)
    halves = (remove_pictures(pocket, numbers) for numbers in np.array_split(range(1000), 2)[::-1])
    paths = [place / "halves.json", *(place / f"halves-0000{i}.safetensors" for i in range(2))]
    save_shards(paths[0], halves)
    lines = told(client, index="halves.json").splitlines()
    assert lines[0].startswith("halves.json: ")
    assert "flat search, recall 1.000" in lines[-1]
    paths[2].unlink()
    assert "halves-00001.safetensors) of " in refused(client, index="halves.json", only="x*")
    for path in paths:
        path.unlink(missing_ok=True)
