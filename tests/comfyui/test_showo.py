"""A model that draws in any order, in ComfyUI: the Masked Sampler, editing, tokens, indexes."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from arrag_engine.checkpoints import convert_checkpoint, load_checkpoint
from arrag_engine.faid import AdapterConfig
from arrag_engine.recommended import recommended
from scripts.comfyui_client import node_of
from tests.comfyui.test_handed import refused
from tests.comfyui.test_runs import pixels
from tests.tiny import write_adapter
from tests.tiny_showo import showo_folder, tiny_showo

NAME = "tiny-show-o.safetensors"
MASKED = "ARRAG_MaskedSampler"
SIDE = 12
"""Pixels: 6 x 6 tokens of 2 x 2."""


@pytest.fixture(scope="module")
def installed(server, tmp_path_factory):
    """The name of a tiny Show-o among ComfyUI's models."""
    folder = tmp_path_factory.mktemp("showo")
    one = folder / NAME
    convert_checkpoint(showo_folder(folder / "show-o", tiny_showo()), one)
    shutil.copy(one, server.base / "models" / "arrag" / "models" / NAME)
    return NAME


@pytest.fixture
def masked(installed):
    """Function: a workflow that draws with the Masked Sampler; `told` are inputs of it."""

    def make(**told):
        body = {"model": {"class_type": "ARRAG_LoadModel", "inputs": {"dtype": "fp32"}}}
        body["model"]["inputs"]["model"] = installed
        told = {"prompt": "a red car", "seed": 3, "steps": 4} | told
        add(body, "draw", MASKED, **{"model": ["model", 0]} | REQUIRED | told)
        add(body, "show", "PreviewImage", images=["draw", 0])
        add(body, "notes", "PreviewAny", source=["draw", 3])
        return body

    return make


REQUIRED = {
    **{"prompt": "a red car", "seed": 0, "batch": 1, "cfg": -1.0, "temperature": -1.0},
    **{"top_k": 0, "top_p": -1.0, "steps": 0, "schedule": "recommended", "power": 2.0},
    **{"sigmoid_start": -3.0, "sigmoid_end": 3.0, "sigmoid_temperature": 1.0},
    **{
        "confidence": "recommended",
        "choice_temperature": -1.0,
        "preview_every": 1,
        "strength": 1.0,
        "candidates": 0,
    },
}


def add(body, name, class_type, /, **inputs):
    body[name] = {"class_type": class_type, "inputs": inputs}


def drawn(client, body, name="show"):
    """The pictures [H, W, 3] that a preview shows."""
    result = client.run(body)
    assert result.ending == "execution_success", result.error
    return [pixels(client, one) for one in result.images(name)]


def notes_of(client, body):
    result = client.run(body)
    assert result.ending == "execution_success", result.error
    return result.outputs["notes"]["text"][0]


def test_a_batch_is_drawn_and_each_picture_is_the_one_drawn_alone(client, masked):
    both = drawn(client, masked(seed=7, batch=2))
    assert [one.shape for one in both] == [(SIDE, SIDE, 3)] * 2
    assert np.array_equal(both[1], drawn(client, masked(seed=8))[0])
    assert not np.array_equal(both[0], both[1])


CHANGES = {
    "steps": {"steps": 2},
    "cfg": {"cfg": 1.0},
    "temperature": {"temperature": 0.0},
    "top_k": {"top_k": 1},
    "top_p": {"top_p": 0.01},
    "choice_temperature": {"choice_temperature": 0.0},
    "schedule": {"schedule": "linear"},
    "power": {"schedule": "pow", "power": 8.0},
    "sigmoid": {"schedule": "sigmoid", "sigmoid_start": -9.0, "sigmoid_end": 1.0},
    "negative": {"negative": "blue grass"},
}


def test_every_setting_changes_the_picture(client, masked):
    plain = drawn(client, masked())[0]
    for name, change in CHANGES.items():
        assert not np.array_equal(drawn(client, masked(**change))[0], plain), name


def test_notes_name_steps_and_schedule(client, masked, installed, server):
    file = server.base / "models" / "arrag" / "models" / installed
    own = recommended(load_checkpoint(file, torch.float32)).schedule.steps
    assert f"Schedule: {own} steps, temperature 1, cosine." in notes_of(client, masked(steps=0))
    told = {"schedule": "pow", "power": 3.0, "choice_temperature": 0.5}
    assert "Schedule: 4 steps, temperature 0.5, pow 3." in notes_of(client, masked(**told))


@pytest.mark.parametrize(("every", "count"), [(1, 8), (3, 3), (0, 0)])
def test_a_preview_after_so_many_steps_and_the_last(client, masked, every, count):
    result = client.run(masked(steps=8, seed=20 + every, preview_every=every))
    previews, progress = result.of("preview"), result.of("progress")
    assert len(previews) == count
    assert all(Image.open(io.BytesIO(one)).size == (SIDE, SIDE) for one in previews)
    assert progress[-1]["value"] == progress[-1]["max"]


def test_an_interrupt_ends_the_drawing_and_the_next_run_is_clean(client, masked):
    sent = []

    def stop(message):
        if message.kind == "progress" and not sent:
            sent.append(message)
            client.interrupt()

    result = client.run(masked(steps=1000, batch=4, seed=31), on_message=stop)
    assert result.ending == "execution_interrupted"
    assert len(drawn(client, masked(seed=31))) == 1


@pytest.fixture
def retrieving(masked):
    """Function: the same with an index of two pictures; `options` are inputs of Retrieval
    Options."""

    def make(told=None, **options):
        body = masked(**(told or {}))
        add(body, "green", "EmptyImage", width=30, height=20, batch_size=1, color=0x20C020)
        add(body, "blue", "EmptyImage", width=9, height=17, batch_size=1, color=0x2020F0)
        add(body, "grown", "ImageScale", image=["blue", 0], **SCALED)
        add(body, "both", "ImageBatch", image1=["green", 0], image2=["grown", 0])
        add(body, "build", "ARRAG_BuildIndex", model=["model", 0], images=["both", 0], **BUILT)
        chosen = {"weight": 1.0, "temperature": -1.0, "neighbours": 0} | options
        add(body, "options", "ARRAG_RetrievalOptions", index=["build", 0], **chosen)
        add(body, "info", "PreviewAny", source=["build", 1])
        body["draw"]["inputs"]["retrieval"] = ["options", 0]
        return body

    return make


SCALED = {"upscale_method": "lanczos", "width": 30, "height": 20, "crop": "disabled"}
BUILT = {
    **{"name": "of-show-o", "folder": "(the images input)", "captions": "", "licence": ""},
    **{"source": "", "crops": "center", "neighborhood": "recommended"},
    **{"borders": "recommended", "key_space": "recommended", "position_weight": -1.0},
    **{"structure": "auto", "recall_target": 0.95, "overwrite": True},
}


def test_retrieval_from_an_index_that_was_built_with_it(client, masked, retrieving):
    plain = drawn(client, masked(seed=5))[0]
    assert not np.array_equal(drawn(client, retrieving({"seed": 5}))[0], plain)
    assert np.array_equal(drawn(client, retrieving({"seed": 5}, weight=0.0))[0], plain)
    result = client.run(retrieving({"seed": 6}))
    assert "grid 6x6, neighbours ring-8" in result.outputs["info"]["text"][0]
    assert "Retrieval: weight 1" in result.outputs["notes"]["text"][0]


def test_confidence_and_the_widgets_of_masked_retrieval_change_the_picture(client, retrieving):
    hot = {"weight": 0.9, "temperature": 9.0}
    plain = drawn(client, retrieving({"seed": 5}, **hot))[0]
    changed = [
        retrieving({"seed": 5, "confidence": "model"}, **hot),
        retrieving({"seed": 5, "grow": "yes"}, **hot),
        retrieving({"seed": 5}, border_keys="in", **hot),
        retrieving({"seed": 5}, distances="sum", **hot),
        retrieving({"seed": 5}, start=0.3, **hot),
    ]
    for body in changed:
        assert not np.array_equal(drawn(client, body)[0], plain)


def test_the_adapter_of_the_model_joins(server, client, masked, retrieving, installed):
    models = server.base / "models" / "arrag"
    config = AdapterConfig((0, 1), (1, 2), 2, 4.0, 0.05, True, 3, "masked")
    adapter = models / "adapters" / "tiny-show-o.safetensors"
    write_adapter(adapter, models / "models" / installed, config)

    def adapted(**told):
        body = retrieving({"seed": 5, "model": ["adapted", 0]} | told, weight=0.0)
        add(body, "adapted", "ARRAG_LoadAdapter", model=["model", 0], adapter=adapter.name)
        return drawn(client, body)[0]

    plain, blended = drawn(client, masked(seed=5))[0], adapted()
    assert not np.array_equal(blended, plain)
    assert not np.array_equal(adapted(candidates=1), blended)
    assert np.array_equal(adapted(strength=0.0), plain)


def test_the_trace_is_mapped_and_credited(client, retrieving):
    body = retrieving({"seed": 5})
    add(body, "map", "ARRAG_RetrievalMap", trace=["draw", 2], image=["draw", 0], **MAPPED)
    add(body, "heat", "PreviewImage", images=["map", 0])
    add(body, "save", "ARRAG_SaveWithAttribution", image=["draw", 0], trace=["draw", 2], **SAVED)
    result = client.run(body)
    assert result.ending == "execution_success", result.error
    assert result.images("heat")
    assert result.images("save")


MAPPED = {"larger_than": 16, "opacity": 0.6}
SAVED = {"filename_prefix": "showo", "credit_file": False, "content_credentials": "off"}


@pytest.fixture
def editing(server, masked):
    """Function: the lower half of a noise picture drawn anew; `told` are inputs of the sampler."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(noise).save(server.base / "input" / "showo-noise.png")

    def make(**told):
        body = masked(**{"tokens": ["encode", 0], "mask": ["mask", 0]} | told)
        add(body, "load", "LoadImage", image="showo-noise.png")
        add(body, "encode", "ARRAG_VQEncode", model=["model", 0], image=["load", 0])
        add(body, "black", "SolidMask", value=0.0, width=SIDE, height=SIDE)
        add(body, "white", "SolidMask", value=1.0, width=SIDE, height=SIDE // 2)
        both = {"destination": ["black", 0], "source": ["white", 0]}
        add(body, "mask", "MaskComposite", x=0, y=SIDE // 2, operation="add", **both)
        for name, tokens in (("before", ["encode", 0]), ("after", ["draw", 1])):
            add(body, f"{name} pixels", "ARRAG_VQDecode", model=["model", 0], tokens=tokens)
            add(body, name, "PreviewImage", images=[f"{name} pixels", 0])
            add(body, f"{name} hash", "ARRAGTest_TokenHash", tokens=tokens)
        return body

    return make


def test_tokens_come_back_as_the_samplers_picture_and_redraw_0_changes_nothing(client, editing):
    result = client.run(editing())
    before, shown, after = (
        pixels(client, result.images(name)[0]) for name in ("before", "show", "after")
    )
    assert np.array_equal(shown, after)
    assert not np.array_equal(before, after)
    assert "Editing: 18 of 36 tokens are drawn anew." in result.outputs["notes"]["text"][0]
    hashes = client.run(editing(redraw=0.0)).outputs
    assert hashes["before hash"] == hashes["after hash"]


def test_a_share_is_drawn_anew(client, editing):
    assert "Editing: 9 of 36 tokens" in notes_of(client, editing(redraw=0.5))


@pytest.fixture
def outpainting(editing):
    """Function: the noise picture continued; `told` are inputs of the sampler."""

    def make(**told):
        body = editing(**{"mask": None, "outpaint": "down", "times": 3} | told)
        inputs = body["draw"]["inputs"]
        body["draw"]["inputs"] = {k: v for k, v in inputs.items() if v is not None}
        return body

    return make


def test_a_picture_is_continued_and_continued_again(client, outpainting):
    body = outpainting()
    again = {**body["draw"]["inputs"], "tokens": ["draw", 1], "prompt": "grass", "outpaint": "up"}
    add(body, "more", MASKED, **again)
    add(body, "more show", "PreviewImage", images=["more", 0])
    result = client.run(body)
    assert result.ending == "execution_success", result.error
    shown, after, more = (
        pixels(client, result.images(name)[0]) for name in ("show", "after", "more show")
    )
    assert shown.shape == (SIDE + 3 * SIDE // 2, SIDE, 3)
    assert more.shape == (SIDE + 6 * SIDE // 2, SIDE, 3)
    assert np.array_equal(shown, after)
    assert (
        "Outpainting: 3 x 3 rows, side 'down'; 15x6 tokens." in result.outputs["notes"]["text"][0]
    )
    assert len(result.of("preview")) >= 12


BAD_OUTPAINTING = {
    "no tokens": ({"tokens": None}, "outpaint is 'down', but no tokens of a picture are connected"),
    "a mask": ({"mask": ["mask", 0]}, "outpainting keeps all tokens of the picture; disconnect"),
    "redraw": ({"redraw": 0.5}, "set redraw to 1, or set outpaint to 'no'"),
    "times": ({"times": ["number", 0]}, "times is 99; choose 1 to 16"),
}


@pytest.mark.parametrize(("change", "said"), BAD_OUTPAINTING.values(), ids=BAD_OUTPAINTING)
def test_what_cannot_be_continued_is_one_sentence(client, outpainting, change, said):
    body = outpainting(**change)
    add(body, "number", "PrimitiveInt", value=99)
    assert said in refused(client.run(body))


def test_the_trace_of_a_continued_picture_is_refused_where_it_is_used(client, outpainting):
    body = outpainting()
    add(body, "save", "ARRAG_SaveWithAttribution", image=["draw", 0], trace=["draw", 2], **SAVED)
    assert "an outpainted picture has no trace" in refused(client.run(body))


@pytest.mark.parametrize(
    ("template", "sampler"),
    [
        ("baseline", "ARRAG_Sampler"),
        ("daid", "ARRAG_DAiDSampler"),
        ("faid", "ARRAG_FAiDSampler"),
    ],
)
def test_the_raster_samplers_name_the_masked_sampler(
    client, workflow, installed, template, sampler
):
    body = workflow(template, ARRAG_LoadModel={"model": installed})
    if template == "faid":
        body[node_of(body, sampler)]["inputs"]["model"] = [node_of(body, "ARRAG_LoadModel"), 0]
        del body[node_of(body, "ARRAG_LoadAdapter")]
    said = refused(client.run(body))
    assert "draws in any order; connect it to the Masked Sampler" in said


def test_the_masked_sampler_names_the_raster_samplers(client, masked):
    body = masked()
    body["model"]["inputs"]["model"] = "pocket"
    said = refused(client.run(body))
    assert "pocket draws in raster order; connect it to the AR Sampler, DAiD Sampler or" in said


def test_a_janus_index_and_janus_tokens_are_refused(client, masked, editing):
    body = masked(retrieval=["options", 0])
    add(body, "index", "ARRAG_LoadIndex", index="pocket")
    chosen = {"weight": 1.0, "temperature": -1.0, "neighbours": 0}
    add(body, "options", "ARRAG_RetrievalOptions", index=["index", 0], **chosen)
    assert "was built" in refused(client.run(body))
    body = editing()
    add(body, "pocket", "ARRAG_LoadModel", model="pocket", dtype="fp32")
    body["encode"]["inputs"]["model"] = ["pocket", 0]
    for name in ("before", "before pixels", "before hash"):
        del body[name]
    assert "made with another VQ" in refused(client.run(body))


@pytest.fixture
def other(server, tmp_path):
    """Function: a folder as downloaded among ComfyUI's models, `change` applied; its name."""

    def make(name, change):
        folder = showo_folder(server.base / "models" / "arrag" / "models" / name, tiny_showo())
        change(folder)
        return name

    return make


def test_a_folder_without_its_tokenizer_is_one_sentence(client, masked, other):
    body = masked()
    name = other("show-o-dumb", lambda folder: (folder / "tokenizer.json").unlink())
    body["model"]["inputs"]["model"] = name
    assert "put the tokenizer.json of microsoft/phi-1_5 into" in refused(client.run(body))


def smaller(folder):
    """The same weights for a grid of 4 x 4, as 256 px and 512 px have the same weights."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_vq_tokens": 16}))


def test_tokens_and_indexes_of_another_grid_are_refused(client, editing, retrieving, other):
    name = other("show-o-small", smaller)
    body = editing()
    add(body, "small", "ARRAG_LoadModel", model=name, dtype="fp32")
    body["draw"]["inputs"]["model"] = ["small", 0]
    assert "the tokens are of 6x6 positions, the model draws 4x4" in refused(client.run(body))
    body = retrieving({"model": ["small", 0]})
    add(body, "small", "ARRAG_LoadModel", model=name, dtype="fp32")
    assert "6x6" in refused(client.run(body))


LINKED = {
    "steps": ("PrimitiveInt", -1, "steps is -1; choose 1 to 1000"),
    "power": ("PrimitiveFloat", 0.0, "power is 0.0; choose more than 0"),
    "sigmoid_end": ("PrimitiveFloat", -3.0, "the sigmoid begins and ends at -3.0"),
    "choice_temperature": ("PrimitiveFloat", 200.0, "temperature is 200.0; choose"),
}


@pytest.mark.parametrize("field", LINKED)
def test_limits_hold_for_linked_values(client, masked, field):
    kind, value, said = LINKED[field]
    curve = {"power": "pow", "sigmoid_end": "sigmoid"}.get(field, "cosine")
    body = masked(**{field: ["number", 0], "schedule": curve})
    add(body, "number", kind, value=value)
    assert said in refused(client.run(body))
