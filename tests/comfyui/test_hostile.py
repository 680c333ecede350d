"""What must not end a running ComfyUI, whose log stream takes cp1252 only as a Windows pipe does.

After each event the good workflow draws what it drew before.
"""

import io
import os
import shutil
import sys

import pytest
from PIL import Image

from arrag_engine import shipped

NAMES = ["写真", os.fsdecode(b"old-camera-\xe9")]
SHORT = 2200


@pytest.fixture
def base(narrow):
    return narrow[0].base


@pytest.fixture
def picture(narrow, workflow):
    """Function: the picture that the good workflow draws by now, drawn anew each time."""

    return lambda: pixels(narrow[1], narrow[1].run(workflow("daid")))


@pytest.fixture(scope="module")
def drawn():
    """What the good workflow drew first, by its inputs."""
    return {}


@pytest.fixture
def still_good(narrow, workflow, picture, drawn):
    """The good picture is drawn before and after a test."""
    wanted = drawn.setdefault("good", None) or picture()
    drawn["good"] = wanted
    yield
    narrow[1].post("/free", {"unload_models": True, "free_memory": True})
    assert picture() == wanted
    assert "Exception in thread" not in narrow[0].log.read_text(errors="replace")


def pixels(client, result):
    """Of the first picture of a run that must have succeeded, without the file's metadata."""
    assert result.ending == "execution_success", result.error
    return Image.open(io.BytesIO(client.image(result.images()[0]))).tobytes()


def failed(narrow, body):
    """The one error sentence that a run ends with."""
    result = narrow[1].run(body, timeout=60)
    assert result.ending == "execution_error"
    assert "InputError" in result.messages[-1].data["exception_type"]
    assert "\n" not in result.error
    result.error.encode("cp1252")
    assert len(result.error) < SHORT
    return result.error


def shown(name, **inputs):
    """A workflow that shows the second output of a node."""
    source = {"class_type": "PreviewAny", "inputs": {"source": ["node", 1]}}
    return {"node": {"class_type": name, "inputs": inputs}, "show": source}


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.usefixtures("still_good")
def test_a_name_that_the_log_cannot_print(narrow, base, workflow, name):
    """Of a folder, a model, an index; offered, chosen, and at fault."""
    places = [base / "input" / name, base / "models" / "arrag" / "models" / f"{name}.safetensors"]
    places.append(base / "models" / "arrag" / "indexes" / f"{name}.safetensors")
    try:
        for place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir() if place.suffix == "" else place.write_bytes(b"nothing")
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    body = workflow("own_pictures", ARRAG_BuildIndex={"folder": name, "name": "x"})
    assert "holds no readable" in failed(narrow, body)
    model = {"model": places[1].name}
    assert "is truncated or not a" in failed(narrow, workflow("baseline", ARRAG_LoadModel=model))
    index = {"index": places[2].name}
    assert "is not a readable" in failed(narrow, workflow("daid", ARRAG_LoadIndex=index))
    good = shipped.MODELS / "pocket.safetensors"
    shutil.copyfile(good, places[1])
    result = narrow[1].run(workflow("baseline", ARRAG_LoadModel=model))
    assert result.ending == "execution_success", result.error
    for place in places:
        place.rmdir() if place.is_dir() else place.unlink()


@pytest.mark.usefixtures("still_good")
def test_words_that_the_log_cannot_print(narrow, workflow):
    """The notes, which go into the log, name unknown words."""
    result = narrow[1].run(workflow("baseline", ARRAG_Sampler={"prompt": "a 写真 λ"}))
    assert result.ending == "execution_success", result.error
    assert r"\u5199\u771f" in narrow[0].log.read_text(errors="replace")


@pytest.mark.usefixtures("still_good")
def test_an_endless_value_is_cut(narrow, workflow):
    endless = "x" * 100_000
    assert "matches 'xxx" in failed(narrow, workflow("daid", ARRAG_LoadIndex={"only": endless}))


@pytest.mark.usefixtures("still_good")
def test_a_gguf_file_is_listed_and_refused_by_name(narrow, base, workflow):
    path = base / "models" / "arrag" / "models" / "janus-q4.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF")
    schema = narrow[1].get("/object_info/ARRAG_LoadModel")["ARRAG_LoadModel"]
    assert path.name in schema["input"]["required"]["model"][1]["options"]
    error = failed(narrow, workflow("baseline", ARRAG_LoadModel={"model": path.name}))
    assert "janus-q4.gguf is a GGUF file, which this program does not read" in error


def cut(path):
    os.truncate(path, 1000)


def overwrite(path):
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)


KINDS = {
    "models": ("ARRAG_LoadModel", "model", shipped.MODELS),
    "indexes": ("ARRAG_LoadIndex", "index", shipped.INDEXES),
    "adapters": ("ARRAG_LoadAdapter", "adapter", shipped.ADAPTERS),
}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not let it happen")
@pytest.mark.parametrize(
    ("kind", "change"),
    [("models", cut), ("indexes", cut), ("indexes", overwrite), ("adapters", cut)],
)
@pytest.mark.usefixtures("still_good")
def test_a_file_in_use_may_be_cut_off_or_overwritten(narrow, base, workflow, kind, change):
    """While it is loaded, a node that does not load it again keeps working with it."""
    loader, field, source = KINDS[kind]
    path = base / "models" / "arrag" / kind / "mine.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "pocket.safetensors", path)
    body = workflow("faid", **{loader: {field: path.name}})
    client = narrow[1]

    def change_now(message):
        if message.kind == "preview" and path.stat().st_size:
            change(path)

    first = pixels(client, client.run(body, on_message=change_now))
    error = failed(narrow, body)  # loaded again, for it has changed
    assert "mine.safetensors" in error
    shutil.copyfile(source / "pocket.safetensors", path)
    assert pixels(client, client.run(body)) == first
    path.unlink()
