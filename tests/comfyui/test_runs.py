"""Workflows run for real: pictures, previews, interruption, caching, refusals."""

import io
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from scripts.comfyui import ROOT
from scripts.comfyui_client import Refused, node_of
from scripts.make_thumbnails import OWN, write_own_pictures
from scripts.recognise import things_on

SAMPLER = "ARRAG_DAiDSampler"
API_WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows" / "api").glob("*.json"))


def pixels(client, reference):
    """A saved picture as an array [H, W, 3]."""
    return np.asarray(Image.open(io.BytesIO(client.image(reference))).convert("RGB"))


@pytest.mark.parametrize("name", [n for n in API_WORKFLOWS if n != "own_pictures"])
def test_shipped_workflow_runs(client, workflow, name):
    result = client.run(workflow(name))
    assert result.ending == "execution_success", result.error
    assert result.images()
    for reference in result.images():
        assert pixels(client, reference).std() > 0, "the picture is one flat colour"


def test_ones_own_pictures_are_drawn_with_one_choice_and_one_prompt(
    server, client, workflow, tmp_path
):
    """A folder of pictures without captions, the template, and nothing else."""
    write_own_pictures(server.base / "input" / "mine")
    body = workflow("own_pictures", ARRAG_BuildIndex={"folder": "mine"})
    body[node_of(body, SAMPLER)]["inputs"]["prompt"] = OWN
    for _ in range(2):  # the second time over the index of the first
        result = client.run(body)
        assert result.ending == "execution_success", result.error
        body[node_of(body, "ARRAG_BuildIndex")]["inputs"]["licence"] = "CC0"
    (tmp_path / "drawn.png").write_bytes(client.image(result.images()[0]))
    assert "kangaroo" in {thing.name for thing in things_on(tmp_path / "drawn.png")}


def test_same_seed_draws_the_same_picture_and_another_seed_another(client, workflow):
    def draw(seed):
        # Hot enough that what the model is sure of comes out differently, too.
        told = {"seed": seed, "temperature": 1.0}
        result = client.run(workflow("baseline", ARRAG_Sampler=told))
        return pixels(client, result.images()[0])

    first, other, again = draw(11), draw(12), draw(11)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_previews_arrive_while_drawing(client, workflow):
    result = client.run(workflow("daid", ARRAG_DAiDSampler={"seed": 101, "preview_every": 1}))
    kinds = [message.kind for message in result.messages]
    previews = result.of("preview")
    progress = result.of("progress")
    rows = round(len(progress) ** 0.5)
    assert len(previews) >= rows / 2
    assert Image.open(io.BytesIO(previews[0])).format in {"JPEG", "PNG"}
    assert previews[0] != previews[-1]
    last_progress = len(kinds) - 1 - kinds[::-1].index("progress")
    assert kinds.index("preview") < last_progress
    assert progress[-1]["value"] == progress[-1]["max"]


def test_previews_can_be_turned_off(client, workflow):
    result = client.run(workflow("daid", ARRAG_DAiDSampler={"seed": 102, "preview_every": 0}))
    assert result.ending == "execution_success"
    assert not result.of("preview")


def test_interrupt_stops_within_two_seconds_and_the_next_run_is_clean(client, workflow):
    """A big batch is stopped as soon as it has begun."""
    long_run = workflow("daid", ARRAG_DAiDSampler={"seed": 103, "batch": 16})
    stopped_at = []

    def stop_once(message):
        if message.kind == "progress" and not stopped_at:
            stopped_at.append((time.monotonic(), message.data))
            client.interrupt()

    result = client.run(long_run, on_message=stop_once)
    assert result.ending == "execution_interrupted"
    moment, progress = stopped_at[0]
    assert progress["value"] < progress["max"]
    assert result.messages[-1].time - moment < 2
    clean = client.run(workflow("daid", ARRAG_DAiDSampler={"seed": 103}))
    assert clean.ending == "execution_success", clean.error
    assert len(clean.images()) == 1


def test_unchanged_workflow_is_not_run_again(client, workflow):
    body = workflow("daid", ARRAG_DAiDSampler={"seed": 104})
    first, second = client.run(body), client.run(body)
    assert SAMPLER in {body[node]["class_type"] for node in first.executed}
    assert second.executed == set()
    assert second.cached == set(body)


def test_another_seed_runs_only_the_sampler_and_what_follows(client, workflow):
    client.run(workflow("daid", ARRAG_DAiDSampler={"seed": 105}))
    body = workflow("daid", ARRAG_DAiDSampler={"seed": 106})
    executed = client.run(body).executed
    assert {body[node]["class_type"] for node in executed} == {
        *(SAMPLER, "ImageScale", "SaveImage", "PreviewAny")
    }


def test_changed_model_file_is_loaded_again(server, client, workflow):
    """The loader's cache key follows the file on disk, not only its name."""
    shipped = ROOT / "arrag_engine" / "shipped" / "models" / "pocket.safetensors"
    copy = server.base / "models" / "arrag" / "models" / "copied.safetensors"
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(shipped, copy)
    body = workflow("baseline", ARRAG_LoadModel={"model": copy.name}, ARRAG_Sampler={"seed": 107})
    loader = node_of(body, "ARRAG_LoadModel")
    assert loader in client.run(body).executed
    assert loader in client.run(body).cached
    copy.touch()
    assert loader in client.run(body).executed
    copy.with_name("config.json").write_text("{}")  # what another layout's model would read
    assert loader in client.run(body).executed
    copy.with_name("config.json").unlink()


def test_batch_item_equals_the_same_picture_alone(client, workflow):
    together = client.run(workflow("daid", ARRAG_DAiDSampler={"seed": 108, "batch": 3}))
    assert len(together.images()) == 3
    for item, reference in enumerate(together.images()):
        alone = client.run(workflow("daid", ARRAG_DAiDSampler={"seed": 108 + item, "batch": 1}))
        difference = pixels(client, reference).astype(int) - pixels(client, alone.images()[0])
        # Batched and single matrix products round differently: the last bit of a colour may move.
        assert np.abs(difference).max() <= 2


def test_weight_zero_is_the_baseline(client, workflow):
    retrieval = {"weight": 0.0}
    drawn = {"seed": 109, "prompt": "a red car", "cfg": 2.0, "temperature": 0.5}
    with_index = workflow("daid", ARRAG_RetrievalOptions=retrieval, ARRAG_DAiDSampler=drawn)
    plain = workflow("baseline", ARRAG_Sampler=drawn)
    pictures = [client.run(body).images()[0] for body in (with_index, plain)]
    assert np.array_equal(*(pixels(client, picture) for picture in pictures))


def test_picture_survives_encoding_and_decoding(client, workflow):
    """Tokens of the sampler, decoded by the node, are the sampler's picture."""
    body = workflow("baseline", ARRAG_Sampler={"seed": 110})
    model, sampler = [node_of(body, "ARRAG_LoadModel"), 0], node_of(body, "ARRAG_Sampler")

    def add(name, class_type, **inputs):
        body[name] = {"class_type": class_type, "inputs": inputs}

    add("decode", "ARRAG_VQDecode", model=model, tokens=[sampler, 1])
    add("encode", "ARRAG_VQEncode", model=model, image=[sampler, 0])
    add("again", "ARRAG_VQDecode", model=model, tokens=["encode", 0])
    for source in (sampler, "decode", "again"):
        add(f"show {source}", "PreviewImage", images=[source, 0])
    result = client.run(body)
    assert result.ending == "execution_success", result.error
    drawn, decoded, again = (
        pixels(client, result.images(f"show {source}")[0]).astype(int)
        for source in (sampler, "decode", "again")
    )
    assert np.array_equal(drawn, decoded)
    assert again.shape == drawn.shape


@pytest.mark.parametrize("name", ["../x", "..\\x", "/etc/passwd", "C:\\x", "nothing-like-it"])
@pytest.mark.parametrize(
    ("node", "field"), [("ARRAG_LoadModel", "model"), ("ARRAG_LoadIndex", "index")]
)
def test_names_that_are_not_on_offer_are_refused(client, workflow, node, field, name):
    """Before anything runs: the browser marks the node."""
    body = workflow("daid", **{node: {field: name}})
    [error] = refusal(client, body)[node_of(body, node)]["errors"]
    assert error["type"] in {"value_not_in_list", "custom_validation_failed"}
    assert name in error["details"] or repr(name) in error["details"]


@pytest.mark.parametrize(
    ("node", "field", "value"),
    [
        ("ARRAG_RetrievalOptions", "weight", -1.1),
        ("ARRAG_RetrievalOptions", "weight", 1.1),
        ("ARRAG_RetrievalOptions", "temperature", -2.0),
        ("ARRAG_RetrievalOptions", "neighbours", -1),
        (SAMPLER, "batch", 0),
        (SAMPLER, "top_p", 1.5),
        (SAMPLER, "temperature", -2.0),
        (SAMPLER, "window", -1),
        (SAMPLER, "preview_every", -1),
        (SAMPLER, "seed", -1),
    ],
)
def test_values_out_of_range_are_refused(client, workflow, node, field, value):
    body = workflow("daid", **{node: {field: value}})
    [error] = refusal(client, body)[node_of(body, node)]["errors"]
    assert error["type"] in {"value_smaller_than_min", "value_bigger_than_max"}
    assert error["extra_info"]["input_name"] == field


@pytest.mark.parametrize(
    ("node", "field", "value"),
    [
        ("ARRAG_RetrievalOptions", "weight", -0.5),
        (SAMPLER, "cfg", -0.5),
        (SAMPLER, "top_p", 0.0),
        ("ARRAG_LoadIndex", "neighborhood", "causal-5"),
        ("ARRAG_RetrievalOptions", "weight", float("nan")),
        ("ARRAG_RetrievalOptions", "temperature", float("nan")),
        (SAMPLER, "cfg", float("nan")),
        (SAMPLER, "temperature", float("nan")),
        ("ARRAG_LoadModel", "dtype", "float7"),
    ],
)
def test_what_comfyui_lets_through_is_refused_by_us(client, workflow, node, field, value):
    """No range catches a NaN or a value between -1 and 0, and ComfyUI does not compare a value
    with a combo's list."""
    assert_one_sentence(client.run(workflow("daid", **{node: {field: value}})))


def test_unknown_words_are_named_under_the_node(client, workflow):
    prompt = "a red blorptangle"
    result = client.run(workflow("daid", ARRAG_DAiDSampler={"prompt": prompt}))
    assert result.ending == "execution_success", result.error
    [notes] = result.of("text")
    [unknown] = [line for line in notes.splitlines() if "does not know" in line]
    assert "blorptangle" in unknown
    assert "red" not in unknown


def test_an_untouched_sampler_uses_recommended_values_and_says_so(client, object_info):
    """Nodes as they are put down, with every widget at its default."""
    untouched = {node: defaults_of(object_info[node]) for node in object_info}
    untouched[SAMPLER]["prompt"] = "a guitar"
    body = {
        "1": {"class_type": "ARRAG_LoadModel", "inputs": untouched["ARRAG_LoadModel"]},
        "2": {"class_type": "ARRAG_LoadIndex", "inputs": untouched["ARRAG_LoadIndex"]},
        "3": {
            "class_type": "ARRAG_RetrievalOptions",
            "inputs": untouched["ARRAG_RetrievalOptions"] | {"index": ["2", 0]},
        },
        "4": {
            "class_type": SAMPLER,
            "inputs": untouched[SAMPLER] | {"model": ["1", 0], "retrieval": ["3", 0]},
        },
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 3]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "x"}},
    }
    result = client.run(body)
    assert result.ending == "execution_success", result.error
    [notes] = result.outputs["5"]["text"]
    assert "Subject: 'guitar'" in notes
    assert "measured with pocket" in notes
    assert notes == result.of("text")[0]


def defaults_of(schema):
    """The widgets of a node with their defaults; the first choice of a combo without one."""
    values = {}
    for group in ("required", "optional"):
        for name, spec in schema["input"].get(group, {}).items():
            choices = spec[0] if isinstance(spec[0], list) else spec[1].get("options")
            if "default" in spec[1]:
                values[name] = spec[1]["default"]
            elif choices:
                values[name] = choices[0]
    return values


def test_a_prompt_whose_words_the_model_knows_draws_as_without_an_index(client, workflow):
    sampler = {"prompt": "a red car", "seed": 3}
    with_index = client.run(workflow("daid", ARRAG_DAiDSampler=sampler))
    alone = client.run(workflow("baseline", ARRAG_Sampler=sampler))
    shown = [pixels(client, result.images()[0]) for result in (with_index, alone)]
    assert np.array_equal(*shown)


def test_more_neighbours_than_patches_means_all_of_them(client, workflow):
    many = {"neighbours": 65536}
    result = client.run(
        workflow("daid", ARRAG_RetrievalOptions=many, ARRAG_DAiDSampler={"seed": 4})
    )
    assert result.ending == "execution_success", result.error


@pytest.mark.parametrize("prompt", ["", "   \n", "car " * 10_000], ids=["empty", "blank", "long"])
def test_unusable_prompt_is_one_sentence(client, workflow, prompt):
    result = client.run(workflow("baseline", ARRAG_Sampler={"prompt": prompt}))
    assert_one_sentence(result)
    assert "prompt" in result.error


@pytest.mark.parametrize("negative", ["car " * 10_000, "\ud800"], ids=["long", "incomplete"])
def test_unusable_negative_prompt_is_one_sentence(client, workflow, negative):
    result = client.run(workflow("baseline", ARRAG_Sampler={"negative": negative}))
    assert_one_sentence(result)
    assert "the negative prompt" in result.error


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("baseline", "ARRAG_Sampler"),
        ("daid", "ARRAG_DAiDSampler"),
        ("faid", "ARRAG_FAiDSampler"),
    ],
)
def test_every_sampler_has_a_negative_prompt_and_says_when_it_has_no_effect(
    client, workflow, name, node
):
    def run(**more):
        told = {"prompt": "a lion and a mushroom", "seed": 6, "cfg": 1.5}
        result = client.run(workflow(name, **{node: told | more}))
        assert result.ending == "execution_success", result.error
        return pixels(client, result.images()[0]), result.of("text")[0]

    (without, notes), (with_one, same) = run(), run(negative="a mushroom")
    assert notes == same
    assert not np.array_equal(without, with_one)
    (without, _), (with_one, notes) = run(cfg=1.0), run(cfg=1.0, negative="a mushroom")
    assert np.array_equal(without, with_one)
    assert "The negative prompt has no effect: guidance (cfg) is 1." in notes


@pytest.mark.parametrize(
    "content", [b"", b"not a model", b"\xff" * 64], ids=["empty", "text", "ff"]
)
def test_damaged_model_is_one_sentence(server, client, workflow, content):
    damaged = server.base / "models" / "arrag" / "models" / "damaged.safetensors"
    damaged.parent.mkdir(parents=True, exist_ok=True)
    damaged.write_bytes(content)
    result = client.run(workflow("baseline", ARRAG_LoadModel={"model": damaged.name}))
    assert_one_sentence(result)
    assert damaged.name in result.error


def test_damaged_index_is_one_sentence(server, client, workflow):
    damaged = server.base / "models" / "arrag" / "indexes" / "damaged.safetensors"
    damaged.parent.mkdir(parents=True, exist_ok=True)
    damaged.write_bytes(b"not an index")
    result = client.run(workflow("daid", ARRAG_LoadIndex={"index": damaged.name}))
    assert_one_sentence(result)
    assert damaged.name in result.error


def refusal(client, body):
    """The node_errors with which ComfyUI refuses to queue a workflow."""
    with pytest.raises(Refused) as refused:
        client.queue(body)
    assert refused.value.status == 400
    return refused.value.details["node_errors"]


def assert_one_sentence(result):
    """The run failed with one line that is not an internal error's."""
    assert result.ending == "execution_error"
    assert result.error
    assert "\n" not in result.error
    [failure] = result.of("execution_error")
    assert failure["exception_type"].split(".")[-1] not in {"KeyError", "RuntimeError", "TypeError"}
