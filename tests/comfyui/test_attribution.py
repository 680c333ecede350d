"""Save With Attribution in a running ComfyUI."""

import importlib.util
import io
import json
import os
from dataclasses import replace

import pytest
from PIL import Image

from arrag_engine.attribution import CHUNK
from arrag_engine.index import Source, SourceTable, load_index, save_index
from arrag_engine.shipped import INDEXES
from scripts.comfyui import Server, mount
from scripts.comfyui_client import Client, Refused, node_of
from tests.attribution.strangers import NAMES

SIGNS = importlib.util.find_spec("c2pa") is not None
needs_c2pa = pytest.mark.skipif(not SIGNS, reason="c2pa-python is not installed")
INPUTS = {
    "filename_prefix": "credited/a",
    "credit_file": False,
    "content_credentials": "off",
}


@pytest.fixture
def saving(workflow):
    """Function: a workflow that draws with retrieval and saves with attribution and without."""

    def build(batch=1, sampler=None, index="pocket", **inputs):
        body = workflow("daid", ARRAG_DAiDSampler={"batch": batch, **(sampler or {})})
        body[node_of(body, "ARRAG_LoadIndex")]["inputs"]["index"] = index
        drawer = node_of(body, "ARRAG_DAiDSampler")
        links = {"image": [drawer, 0], "trace": [drawer, 2]}
        body["save"] = {
            "class_type": "ARRAG_SaveWithAttribution",
            "inputs": {**links, **INPUTS, **inputs},
        }
        body["say"] = {"class_type": "PreviewAny", "inputs": {"source": ["save", 0]}}
        core = {"images": [drawer, 0], "filename_prefix": "core/a"}
        body["core"] = {"class_type": "SaveImage", "inputs": core}
        return body

    return build


def opened(client, reference):
    return Image.open(io.BytesIO(client.image(reference)))


def refused(client, body):
    """The sentence with which a workflow that only saves with attribution is not queued."""
    others = ("Preview", "SaveImage")
    alone = {key: one for key, one in body.items() if not one["class_type"].startswith(others)}
    with pytest.raises(Refused) as caught:
        client.queue(alone)
    [failure] = caught.value.details["node_errors"]["save"]["errors"]
    return failure["details"]


def certificates(server):
    return server.base / "user" / "__arrag" / "certificates"


def test_the_picture_is_save_image_s_with_credits(client, saving):
    result = client.run(saving(batch=2))
    assert result.ending == "execution_success", result.error
    saved, core = result.images("save"), result.images("core")
    assert [image["filename"] for image in saved] == [image["filename"] for image in core]
    assert {image["subfolder"] for image in saved} == {"credited"}
    for ours, theirs in zip(saved, core, strict=True):
        ours, theirs = opened(client, ours), opened(client, theirs)
        assert ours.tobytes() == theirs.tobytes()
        assert {**ours.text, **theirs.text} == ours.text
        assert ours.text.keys() - theirs.text.keys() == {CHUNK}
        credits = json.loads(ours.text[CHUNK])
        owed = sum(source["share"] for source in credits["sources"])
        assert owed + credits["model"] + credits["unlisted"] == pytest.approx(1)
        assert owed > 0.1
        assert {"name", "origin", "licence", "sha256", "share"} == credits["sources"][0].keys()
        assert credits["sources"][0]["licence"]
    [text] = result.outputs["say"]["text"]
    assert text.count("Shares of the picture's tokens:") == 2


def test_the_workflow_is_inside_as_save_image_writes_it(client, saving):
    body = {"prompt": saving(), "client_id": client.id}
    body["extra_data"] = {"extra_pnginfo": {"workflow": {"nodes": [1]}, CHUNK: "not ours"}}
    start = len(client.messages)
    result = client.result(client.post("/prompt", body)["prompt_id"], start)
    texts = opened(client, result.images("save")[0]).text
    assert json.loads(texts["workflow"]) == {"nodes": [1]}
    assert json.loads(texts["prompt"])["save"]["class_type"] == "ARRAG_SaveWithAttribution"
    assert json.loads(texts[CHUNK])["version"] == 1


def test_numbers_go_on_and_the_credit_file_lies_beside(server, client, saving):
    body = saving(credit_file=True, filename_prefix="texts/%width%-%batch_num%", batch=2)
    names = [client.run({**body, "n": note(i)}).images("save") for i in range(2)]
    folder = server.base / "output" / "texts"
    assert [image["filename"] for image in names[0]] == ["96-0_00001_.png", "96-1_00002_.png"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["96-0_00001_.png", "96-1_00002_.png", "96-0_00001_.txt", "96-1_00002_.txt"]
    )
    text = (folder / "96-1_00002_.txt").read_text(encoding="utf-8")
    assert text.startswith("96-1_00002_.png\nShares of the picture's tokens:\n")
    again = client.run(saving(credit_file=True, filename_prefix="texts/b", sampler={"seed": 9}))
    more = client.run(saving(credit_file=True, filename_prefix="texts/b", sampler={"seed": 10}))
    assert [r.images("save")[0]["filename"] for r in (again, more)] == [
        "b_00001_.png",
        "b_00002_.png",
    ]


def note(i):
    return {"class_type": "PreviewAny", "inputs": {"source": str(i)}}


def test_without_retrieval_the_model_drew_all(client, saving):
    body = saving()
    del body[node_of(body, "ARRAG_DAiDSampler")]["inputs"]["retrieval"]
    credits = json.loads(opened(client, client.run(body).images("save")[0]).text[CHUNK])
    assert (credits["model"], credits["sources"]) == (1, [])


def test_strangers_names_are_saved_as_text(server, client, saving):
    folder = server.base / "models" / "arrag" / "indexes"
    folder.mkdir(parents=True, exist_ok=True)
    pocket = load_index(INDEXES / "pocket.safetensors")
    names = [name for name in NAMES.values() if name.strip()]
    sources = [
        Source(f"{names[i % len(names)]}{i}", s.caption, 0, 0, "", names[i % len(names)], b"")
        for i, s in enumerate(pocket.sources)
    ]
    hostile = replace(pocket, sources=SourceTable.from_sources(sources))
    save_index(hostile, folder / "hostile.safetensors")
    result = client.run(saving(index="hostile.safetensors", credit_file=True))
    assert result.ending == "execution_success", result.error
    credits = json.loads(opened(client, result.images("save")[0]).text[CHUNK])
    assert credits["sources"]
    [reference] = result.images("save")
    path = server.base / "output" / "credited" / reference["filename"]
    text = path.with_suffix(".txt").read_text(encoding="utf-8")
    assert all(line.isprintable() for line in text.split("\n"))
    assert len(text.split("\n")) < len(credits["sources"]) + 6


@pytest.mark.parametrize(
    "prefix",
    ["../out", "/tmp/out", "a/../../out", "a\0b", "\ud800", "x" * 300, "y" * 300 + "/a"],
    ids=["up", "absolute", "around", "null", "half", "long", "long folder"],
)
def test_a_prefix_that_names_no_file_is_one_sentence(server, client, saving, prefix):
    if os.name == "nt" and prefix.startswith("/"):
        prefix = "C:\\out"
    result = client.run(saving(filename_prefix=prefix))
    assert result.ending == "execution_error"
    [failure] = result.of("execution_error")
    assert failure["exception_type"].endswith("InputError"), failure
    assert "\n" not in result.error
    assert not list(server.base.rglob("*.part"))


def test_pictures_of_another_trace_are_one_sentence(client, saving):
    body = saving(batch=2)
    drawer = node_of(body, "ARRAG_DAiDSampler")
    body["one"] = {
        "class_type": "ImageFromBatch",
        "inputs": {"image": [drawer, 0], "batch_index": 0, "length": 1},
    }
    body["save"]["inputs"]["image"] = ["one", 0]
    result = client.run(body)
    assert "image has 1 pictures and trace has 2; connect both to the sampler" in result.error


def test_an_unknown_signer_is_refused_before_drawing(client, saving):
    body = saving(content_credentials="/etc/passwd")
    assert "content_credentials is '/etc/passwd'; choose one of off, own" in refused(client, body)


@pytest.mark.skipif(SIGNS, reason="c2pa-python is installed")
def test_without_the_package_the_command_is_named_before_drawing(client, saving):
    sentence = refused(client, saving(content_credentials="own certificate"))
    assert sentence.endswith("python -m pip install c2pa-python cryptography")


@needs_c2pa
def test_my_certificate_is_missed_before_drawing(server, client, saving):
    sentence = refused(client, saving(content_credentials="my certificate"))
    assert f"there is no {certificates(server) / 'chain.pem'}; put" in sentence


@needs_c2pa
def test_the_own_certificate_signs_and_my_certificate_is_tried_before_drawing(
    server, client, saving
):
    from c2pa import Reader

    result = client.run(saving(content_credentials="own certificate", batch=2))
    assert result.ending == "execution_success", result.error
    for image in result.images("save"):
        with Reader("image/png", io.BytesIO(client.image(image))) as reader:
            assert reader.get_validation_state() == "Valid"
            made = reader.get_active_manifest()
        assert made["title"] == image["filename"]
        credits = json.loads(opened(client, image).text[CHUNK])
        assert len(made["ingredients"]) == len(credits["sources"])
        assert opened(client, image).text["prompt"]
    [text] = result.outputs["say"]["text"]
    assert "which is not publicly trusted" in text
    own = certificates(server) / "own"
    for name in ("chain.pem", "key.pem"):
        (certificates(server) / name).write_bytes((own / name).read_bytes())
    (certificates(server) / "key.pem").chmod(0o600)
    signed = client.run(saving(content_credentials="my certificate"))
    assert signed.ending == "execution_success", signed.error
    assert "publicly trusted" not in signed.outputs["say"]["text"][0]
    (certificates(server) / "key.pem").write_bytes(b"no key")
    sentence = refused(client, saving(content_credentials="my certificate"))
    assert "does not hold a key in PEM" in sentence


@needs_c2pa
@pytest.mark.parametrize("path", ["__arrag/certificates/own/key.pem", "../__arrag/x.pem"])
def test_no_key_is_served(server, client, path):
    for route in ("/userdata/", "/view?type=user&filename=", "/api/userdata/"):
        with pytest.raises(Refused):
            client.get_bytes(route + path.replace("/", "%2F"))


def test_without_metadata_the_workflow_stays_out_and_the_credits_in(
    comfyui, saving, tmp_path_factory
):
    base = tmp_path_factory.mktemp("bare")
    mount(base)
    options = ["--cpu", "--disable-metadata"]
    server = Server(comfyui, base, options=options, threads=1)
    with server, Client(server.url) as client:
        image = client.run(saving()).images("save")[0]
        assert opened(client, image).text.keys() == {CHUNK}
