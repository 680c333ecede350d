"""Build Patch Index and VQ Encode in a real ComfyUI."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from arrag_engine import shipped
from arrag_engine.build import encode_folder
from arrag_engine.build.reading import BATCH
from arrag_engine.checkpoints import load_checkpoint
from arrag_engine.index import load_index
from scripts.comfyui import Server, find_comfyui, mount
from scripts.comfyui_client import Client, Refused
from tests.pictures import picture

BUILD = "ARRAG_BuildIndex"
SETTINGS = {
    "folder": "(the images input)",
    "captions": "",
    "licence": "",
    "source": "",
    "crops": "center",
    "neighborhood": "causal-4",
    "borders": "skip",
    "key_space": "encoder",
    "position_weight": 0.0,
    "structure": "auto",
    "recall_target": 0.95,
    "overwrite": False,
}


@pytest.fixture
def indexes(server):
    """ComfyUI's folder of indexes; what a test makes there goes again."""
    place = server.base / "models" / "arrag" / "indexes"
    place.mkdir(parents=True, exist_ok=True)
    before = set(place.iterdir())
    yield place
    for path in set(place.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def inputs(server):
    """A subfolder `mine` of ComfyUI's input folder with pictures in it."""
    place = server.base / "input" / "mine"
    (place / "sub").mkdir(parents=True, exist_ok=True)
    for i in range(3):
        picture(place / f"{i}.png", i, (120, 96))
    picture(place / "sub" / "3.jpg", 3, (96, 130), quality=95)
    (place / "0.txt").write_text("the first", encoding="utf-8")
    yield place
    shutil.rmtree(place)


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def build(name, **settings):
    """A workflow that builds an index and shows what it says."""
    return {
        "model": node("ARRAG_LoadModel", model="pocket", dtype="auto"),
        "build": node(BUILD, model=["model", 0], name=name, **{**SETTINGS, **settings}),
        "show": node("PreviewAny", source=["build", 1]),
    }


def drawn(body, count=2):
    """The workflow, its index built from pictures that the model draws in it."""
    sampling = {"cfg": 4.0, "temperature": 0.6, "top_k": 0, "top_p": 1.0, "window": 16}
    sampling |= {"preview_every": 0}
    body["draw"] = node(
        "ARRAG_Sampler", model=["model", 0], prompt="a red car", seed=7, batch=count, **sampling
    )
    body["build"]["inputs"]["images"] = ["draw", 0]
    return body


def using(body, index, name="use"):
    """The workflow, and a picture that is drawn with the index at full weight."""
    sampling = dict(body["draw"]["inputs"]) | {"seed": 9, "batch": 1}
    body[f"{name} options"] = node(
        "ARRAG_RetrievalOptions", index=index, weight=1.0, temperature=0.1, neighbours=4
    )
    body[name] = node("ARRAG_DAiDSampler", retrieval=[f"{name} options", 0], **sampling)
    body[f"{name} show"] = node("PreviewImage", images=[name, 0])
    return body


def pixels(client, result, name):
    [reference] = result.images(f"{name} show")
    return np.asarray(Image.open(io.BytesIO(client.image(reference))).convert("RGB"))


def info(result):
    return result.outputs["show"]["text"][0]


def failure(client, body):
    result = client.run(body)
    assert result.ending == "execution_error"
    assert "\n" not in result.error
    return result.error


def test_an_index_of_a_batch_is_used_in_the_same_graph(client, indexes):
    body = using(
        drawn(build("batch", captions="one\ntwo", licence="CC0", source="me")), ["build", 0]
    )
    body["plain"] = node(
        "ARRAG_Sampler", **{k: v for k, v in body["use"]["inputs"].items() if k != "retrieval"}
    )
    body["plain show"] = node("PreviewImage", images=["plain", 0])
    result = client.run(body)
    assert result.ending == "execution_success", result.error
    index = load_index(indexes / "batch.safetensors")
    assert [s.caption for s in index.sources] == ["one", "two"]
    assert {(s.licence, s.origin) for s in index.sources} == {("CC0", "me")}
    assert "2 pictures" in info(result)
    with_index = pixels(client, result, "use")
    assert not np.array_equal(with_index, pixels(client, result, "plain"))
    later = {k: v for k, v in body.items() if k in ("model", "draw")}
    later["load"] = node("ARRAG_LoadIndex", index="batch.safetensors")
    result = client.run(using(later, ["load", 0]))
    assert np.array_equal(with_index, pixels(client, result, "use"))


def test_an_index_of_a_folder_is_what_the_engine_makes_of_it(client, indexes, inputs):
    result = client.run(build("folder", folder="mine"))
    assert result.ending == "execution_success", result.error
    model = load_checkpoint(shipped.resolve("pocket", shipped.MODELS), torch.float32).model
    wanted = encode_folder(model, inputs)
    index = load_index(indexes / "folder.safetensors")
    assert np.array_equal(index.tokens, wanted.tokens)
    assert [s.name for s in index.sources] == ["0.png", "1.png", "2.png", "sub/3.jpg"]
    assert index.sources[0].caption == "the first"
    assert [p.name for p in indexes.iterdir() if "folder" in p.name] == ["folder.safetensors"]


def test_settings_reach_the_index(client, indexes, inputs):
    settings = {
        "crops": "cover",
        "neighborhood": "causal-8",
        "borders": "zero",
        "key_space": "codebook",
        "position_weight": 0.5,
        "structure": "flat",
    }
    assert client.run(build("set", folder="mine", **settings)).ending == "execution_success"
    index = load_index(indexes / "set.safetensors")
    spec = index.spec
    found = (spec.neighborhood, spec.borders, spec.space, spec.position_weight)
    assert found == ("causal-8", "zero", "codebook", 0.5)
    assert len(index.tokens) == 8  # two crops each


@pytest.fixture
def three(server, tmp_path):
    """A subfolder with pictures of three sizes and a text for each, which core loads as lists, but
    not again when they have changed."""
    place = server.base / "input" / tmp_path.name
    place.mkdir(parents=True)
    for i, colour in enumerate(COLOURS):
        Image.new("RGB", (64 + 20 * i, 64 + i), colour).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(f"a {colour}\nroom", encoding="utf-8")
    yield place
    shutil.rmtree(place)


COLOURS = ("red", "green", "blue")


def listed(body, place):
    """The workflow with core's lists of pictures and texts for the node `build`."""
    body["list"] = node("LoadImageTextDataSetFromFolder", folder=place.name)
    body["build"]["inputs"]["images"] = ["list", 0]
    return body


def test_a_list_of_pictures_makes_one_index(client, indexes, three):
    body = listed(build("listed"), three)
    body["build"]["inputs"]["captions"] = "one\ntwo\nthree"
    result = client.run(body)
    assert result.ending == "execution_success", result.error
    assert "3 of 3 pictures have captions" in info(result)
    sources = load_index(indexes / "listed.safetensors").sources
    assert [(s.name, s.caption) for s in sources] == [
        ("picture 1", "one"),
        ("picture 2", "two"),
        ("picture 3", "three"),
    ]
    assert {(s.width, s.height) for s in sources} == {(64, 64), (84, 65), (104, 66)}
    body["build"]["inputs"] |= {"captions": "one\ntwo", "name": "short"}
    assert "there are 2 captions for 3 pictures" in failure(client, body)
    assert not (indexes / "short.safetensors").exists()


def test_a_list_of_texts_is_a_caption_for_each_picture(client, indexes, three):
    body = listed(build("texts"), three)
    body["build"]["inputs"]["captions"] = ["list", 1]
    result = client.run(body)
    assert result.ending == "execution_success", result.error
    told = {s.width: s.caption for s in load_index(indexes / "texts.safetensors").sources}
    assert told == {64: "a red\nroom", 84: "a green\nroom", 104: "a blue\nroom"}


def test_several_values_of_another_input_are_one_sentence(client, indexes, three):
    body = listed(build("several"), three)
    body["build"]["inputs"]["licence"] = ["list", 1]
    assert "licence is a list of 3 different values; one index takes one" in failure(client, body)


def test_equal_values_of_another_input_are_one(client, indexes, three):
    for text in three.glob("*.txt"):
        text.write_text("CC0")
    body = listed(build("equal"), three)
    body["build"]["inputs"] |= {"licence": ["list", 1], "name": ["name", 0]}
    body["name"] = node("PrimitiveString", value="linked")
    result = client.run(body)
    assert result.ending == "execution_success", result.error
    assert {s.licence for s in load_index(indexes / "linked.safetensors").sources} == {"CC0"}


def test_every_other_node_takes_lists_item_by_item(client, three):
    body = {
        "model": node("ARRAG_LoadModel", model="pocket", dtype="auto"),
        "list": node("LoadImageTextDataSetFromFolder", folder=three.name),
        "encode": node("ARRAG_VQEncode", model=["model", 0], image=["list", 0]),
        "decode": node("ARRAG_VQDecode", model=["model", 0], tokens=["encode", 0]),
        "decode show": node("PreviewImage", images=["decode", 0]),
        "index": node("ARRAG_LoadIndex", index="pocket", only=["list", 1]),
        "options": node(
            "ARRAG_RetrievalOptions", index=["index", 0], weight=0.5, temperature=0.1, neighbours=4
        ),
        "draw": node(
            "ARRAG_DAiDSampler",
            **{"model": ["model", 0], "prompt": ["list", 1], "seed": 1, "batch": 1, "cfg": 4.0},
            **{"temperature": 0.6, "top_k": 0, "top_p": 1.0, "window": 16, "preview_every": 0},
            retrieval=["options", 0],
        ),
        "draw show": node("PreviewImage", images=["draw", 0]),
    }
    for text, said in zip(sorted(three.glob("*.txt")), ("car", "*", "{prompt} red"), strict=True):
        text.write_text(said)
    result = client.run(body)
    assert result.ending == "execution_success", result.error
    assert len(result.images("decode show")) == len(result.images("draw show")) == 3


def test_what_is_left_out_is_named(client, indexes, inputs):
    (inputs / "bad.png").write_bytes(b"bad")
    shutil.copyfile(inputs / "1.png", inputs / "same.png")
    said = info(client.run(build("left", folder="mine")))
    assert "bad.png: not a readable picture" in said
    assert "same.png: the same picture as 1.png" in said
    assert "4 pictures" in said
    assert "1 of 4 pictures have captions" in said


def test_the_same_inputs_are_not_built_twice_unless_the_file_is_gone(client, indexes, inputs):
    body = build("again", folder="mine")
    out = indexes / "again.safetensors"
    assert "build" in client.run(body).executed
    assert "build" in client.run(body).cached
    out.unlink()
    assert "build" in client.run(body).executed
    assert out.is_file()
    assert "build" in client.run(body).cached
    body["build"]["inputs"]["overwrite"] = True
    assert "build" in client.run(body).executed
    assert "build" in client.run(body).cached
    picture(inputs / "new.png", 5)
    result = client.run(body)
    assert "build" in result.executed
    assert "5 pictures" in info(result)


def test_a_name_that_is_taken_needs_overwrite(client, indexes, inputs):
    (indexes / "taken.safetensors").write_bytes(b"precious")
    assert "there is an index taken.safetensors already" in failure(
        client, build("taken", folder="mine")
    )
    assert (indexes / "taken.safetensors").read_bytes() == b"precious"
    assert client.run(build("taken", folder="mine", overwrite=True)).ending == "execution_success"
    assert len(load_index(indexes / "taken.safetensors").tokens) == 4


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/etc/x",
        "C:x",
        "NUL",
        "com1.txt",
        ".hidden",
        "x.",
        "a\nb",
        "x" * 101,
        "ä" * 60,
        "\ud800",
        "a\0b",
        "..\\x",
        "~/x?",
    ],
)
def test_names_that_are_no_file_names_are_refused_before_the_queue(client, indexes, inputs, name):
    before = sorted(indexes.parent.rglob("*"))
    with pytest.raises(Refused) as refused:
        client.queue(build(name, folder="mine"))
    errors = refused.value.details["node_errors"]["build"]["errors"]
    assert all("cannot be a file's name" in error["details"] for error in errors)
    assert sorted(indexes.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["abc\u202estrebor", "a\u2066b", "\u200fx", "a\u2028b", "a\x85b"])
def test_names_that_show_as_others_are_refused(client, indexes, inputs, name):
    with pytest.raises(Refused) as refused:
        client.queue(build(name, folder="mine"))
    errors = refused.value.details["node_errors"]["build"]["errors"]
    assert all("cannot be a file's name" in error["details"] for error in errors)


@pytest.mark.parametrize(
    "folder", ["..", "../input/mine", "/etc", "mine/..", "none", "", "mine\\sub"]
)
def test_folders_that_are_not_on_offer_are_refused(client, indexes, inputs, folder):
    with pytest.raises(Refused) as refused:
        client.queue(build("x", folder=folder))
    errors = refused.value.details["node_errors"]["build"]["errors"]
    assert all("subfolders of ComfyUI's input folder" in error["details"] for error in errors)


def test_subfolders_are_on_offer(client, inputs):
    spec = client.get(f"/object_info/{BUILD}")[BUILD]["input"]["required"]["folder"]
    options = spec[0] if isinstance(spec[0], list) else spec[1]["options"]
    assert options[0] == "(the images input)"
    assert {"mine", "mine/sub"} <= set(options[1:])  # ComfyUI makes a folder "3d" when asked for


def test_inputs_that_contradict_each_other_are_one_sentence(client, indexes, inputs):
    (inputs.parent / "empty").mkdir()
    cases = [
        (build("x"), "connect images or choose a folder"),
        (drawn(build("x", folder="mine")), "connect images or choose a folder"),
        (build("x", folder="mine", captions="one"), "captions belong to the images input"),
        (drawn(build("x", captions="one\ntwo\nthree")), "there are 3 captions for 2 pictures"),
        (build("x", folder="empty"), "holds no readable picture"),
        (build("x", folder="mine", crops="all"), "crops is 'all'"),
        (build("x", folder="mine", neighborhood="none"), "neighborhood is 'none'"),
        (build("x", folder="mine", position_weight=float("nan")), "position weight is nan"),
    ]
    for body, message in cases:
        assert message in failure(client, body)
    (inputs.parent / "empty").rmdir()
    assert not [p for p in indexes.iterdir() if p.stem.strip(".") == "x"]


def stop_at_progress(client, body, name, least=1):
    """The result of a run that is interrupted as soon as a node has made some progress."""
    stopped = []

    def stop(message):
        ours = message.kind == "progress" and message.data["node"] == name
        if ours and not stopped and least <= message.data["value"] < message.data["max"]:
            stopped.append(message)
            client.interrupt()

    result = client.run(body, on_message=stop)
    assert stopped
    return result


def test_an_interrupted_build_leaves_no_index_and_goes_on_later(client, indexes, inputs):
    for i in range(76):
        picture(inputs / f"more{i}.png", 10 + i, (200, 200))
    body = build("long", folder="mine")
    result = stop_at_progress(client, body, "build", 2 * BATCH)
    assert result.ending == "execution_interrupted"
    out = indexes / "long.safetensors"
    assert not out.exists()
    offered = client.get("/object_info/ARRAG_LoadIndex")["ARRAG_LoadIndex"]["input"]["required"]
    assert "long" not in str(offered)
    result = client.run(body)
    assert result.ending == "execution_success", result.error
    first = next(p for p in result.of("progress") if p["node"] == "build")
    assert first["value"] >= 2 * BATCH
    assert len(load_index(out).tokens) == first["max"] == 80


def test_an_interrupted_build_of_a_batch_leaves_nothing(client, indexes, server):
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (96, 96, 3), np.uint8)) for _ in range(60)]
    film = server.base / "input" / "film.png"
    frames[0].save(film, save_all=True, append_images=frames[1:])
    body = build("stopped")
    body["film"] = node("LoadImage", image="film.png")
    body["build"]["inputs"]["images"] = ["film", 0]
    before = set(indexes.iterdir())
    result = stop_at_progress(client, body, "build")
    film.unlink()
    assert result.ending == "execution_interrupted"
    assert set(indexes.iterdir()) == before


def test_encoding_lays_transparency_on_white(client, server):
    """A see-through red picture is a white one."""

    def tokens_of(name, image):
        return {
            f"{name} encode": node("ARRAG_VQEncode", model=["model", 0], image=image),
            f"{name} decode": node(
                "ARRAG_VQDecode", model=["model", 0], tokens=[f"{name} encode", 0]
            ),
            f"{name} show": node("PreviewImage", images=[f"{name} decode", 0]),
        }

    size = {"width": 96, "height": 96}
    body = {
        "model": node("ARRAG_LoadModel", model="pocket", dtype="auto"),
        "red": node("EmptyImage", color=0xFF0000, batch_size=1, **size),
        "white": node("EmptyImage", color=0xFFFFFF, batch_size=1, **size),
        "mask": node("SolidMask", value=1.0, **size),
        "clear": node("JoinImageWithAlpha", image=["red", 0], alpha=["mask", 0]),
        **tokens_of("a", ["clear", 0]),
        **tokens_of("b", ["white", 0]),
        **tokens_of("c", ["red", 0]),
    }
    result = client.run(body)
    assert result.ending == "execution_success", result.error
    clear, white, red = (pixels(client, result, name) for name in "abc")
    assert np.array_equal(clear, white)
    assert not np.array_equal(clear, red)


@pytest.mark.parametrize("class_type", ["ARRAG_VQEncode", "ARRAG_VQDecode"])
def test_long_batches_show_progress_and_can_be_stopped(client, class_type):
    body = {
        "model": node("ARRAG_LoadModel", model="pocket", dtype="auto"),
        "red": node("EmptyImage", color=0xFF0000, batch_size=60, width=96, height=96),
        "encode": node("ARRAG_VQEncode", model=["model", 0], image=["red", 0]),
        "decode": node("ARRAG_VQDecode", model=["model", 0], tokens=["encode", 0]),
        "show": node("PreviewImage", images=["decode", 0]),
    }
    name = class_type.removeprefix("ARRAG_VQ").lower()
    result = stop_at_progress(client, body, name)
    assert result.ending == "execution_interrupted"
    values = [p["value"] for p in result.of("progress") if p["node"] == name]
    assert values[-1] < 60


def test_an_index_is_saved_in_the_default_folder_of_extra_model_paths(server, tmp_path):
    """Whatever order the files are read in; a section that is no default is only listed."""
    base = tmp_path / "base"
    mount(base)
    (base / "input" / "mine").mkdir(parents=True)
    picture(base / "input" / "mine" / "a.png", 0, (120, 96))
    paths = tmp_path / "paths.yaml"
    paths.write_text(
        "listed:\n  base_path: other\n  arrag_indexes: indexes\n"
        "mine:\n  base_path: disk\n  is_default: true\n  arrag_indexes: indexes\n"
    )
    options = ["--cpu", "--extra-model-paths-config", str(paths)]
    with (
        Server(find_comfyui(), base, options=options, threads=1) as running,
        Client(running.url) as client,
    ):
        result = client.run(build("saved", folder="mine"))
        assert result.ending == "execution_success", result.error
        offered = client.get("/object_info/ARRAG_LoadIndex")["ARRAG_LoadIndex"]["input"]
    assert (tmp_path / "disk" / "indexes" / "saved.safetensors").is_file()
    assert "saved.safetensors" in str(offered)
