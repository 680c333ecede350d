"""A hundred hostile workflows, made from seeds, through one ComfyUI.

Each ends in a picture, a refusal of ComfyUI's or one sentence of ours; after each, the good
workflow draws what it drew before.
"""

import copy
import io
import random
import re

import pytest
from PIL import Image

from arrag_engine.index import save_index
from scripts.comfyui_client import Refused
from scripts.fuzz_mutate import mutated
from tests.tiny import write_adapter, write_tiny

WORKFLOWS = 100
FILES = 8
"""Damaged files of each kind that they choose from."""
LOADERS = {
    "ARRAG_LoadModel": ("model", "models"),
    "ARRAG_LoadIndex": ("index", "indexes"),
    "ARRAG_LoadAdapter": ("adapter", "adapters"),
}
"""The input that names a file, and the folder of the file."""
SOUND = "tiny.safetensors"
VALUES = [
    *(None, True, -1, 0, 10**9, 10**30, 1e308, float("nan"), float("inf"), 0.5, 2**64),
    *("", " ", "nan", "pocket", "{prompt}", "x" * 50_000, "a 写真 λ", "[", "*", "%s{0}{"),
    *("\ud800", "\u202egnp.evil", "\0", "a\nb", "../../evil", "/etc/passwd", "C:\\evil", "CON"),
    *("evil.safetensors", ".", "~", "../pocket", "\x1b[31mred"),
    *({}, {"a": 1}, {"__value__": []}, {"__value__": ["a", 1, None]}, {"__value__": [[["a"]]]}),
]
LINKED = [
    *(("PrimitiveInt", value) for value in (-1, 0, 10**9, 2**62, -(2**62))),
    *(("PrimitiveFloat", value) for value in (-1.0, 0.0, 1e300, 0.3)),
    *(("PrimitiveString", value) for value in ("", "auto", "../../evil", "\ud800", "y" * 50_000)),
    *(("PrimitiveBoolean", value) for value in (True, False)),
]


@pytest.fixture(scope="module")
def damaged(narrow, model, index):
    """Names of damaged files by the class of the node that loads them; sound ones beside them."""
    base, names, rng = narrow[0].base / "models" / "arrag", {}, random.Random(0)
    for _, kind in LOADERS.values():
        (base / kind).mkdir(parents=True, exist_ok=True)
    write_tiny(base / "models" / SOUND, model)
    save_index(index, base / "indexes" / SOUND)
    write_adapter(base / "adapters" / SOUND, base / "models" / SOUND)
    for class_type, (_, kind) in LOADERS.items():
        data = (base / kind / SOUND).read_bytes()
        names[class_type] = [f"damaged-{i}.safetensors" for i in range(FILES)]
        for name in names[class_type]:
            (base / kind / name).write_bytes(mutated(data, rng))
    yield names
    for class_type, (_, kind) in LOADERS.items():
        for name in (SOUND, *names[class_type]):
            (base / kind / name).unlink()


def small(body):
    """The workflow with the sound files, whose pictures take a moment to draw."""
    for node in body.values():
        if node["class_type"] in LOADERS:
            node["inputs"][LOADERS[node["class_type"]][0]] = SOUND
    return body


def hostile(bodies, damaged, rng):
    """A workflow of which one to three inputs of our nodes are what nobody would connect."""
    body = copy.deepcopy(rng.choice(bodies))
    ours = [key for key in body if body[key]["class_type"].startswith("ARRAG_")]
    for number in range(rng.choice((1, 1, 2, 3))):
        inputs = body[rng.choice(ours)]["inputs"]
        field, kind = rng.choice(list(inputs)), rng.randrange(10)
        loaders = [key for key in ours if body[key]["class_type"] in LOADERS]
        if kind < 3 and loaders:
            loader = body[rng.choice(loaders)]
            loader["inputs"][LOADERS[loader["class_type"]][0]] = rng.choice(
                damaged[loader["class_type"]]
            )
        elif kind < 6:
            inputs[field] = copy.deepcopy(rng.choice(VALUES))
        elif kind < 8:
            class_type, value = rng.choice(LINKED)
            body[f"p{number}"] = {"class_type": class_type, "inputs": {"value": value}}
            inputs[field] = [f"p{number}", 0]
        elif kind == 8:
            inputs[field] = [rng.choice(list(body)), rng.randrange(3)]
        else:
            inputs[rng.choice((field, "surplus"))] = [rng.choice(ours), 0]
    return body


def ending(client, body):
    """How a workflow ended: refused, drawn, or the sentence of our own error."""
    try:
        result = client.run(body, timeout=60)
    except Refused:
        return "refused"
    if result.ending == "execution_success":
        return "drawn"
    [failure] = result.of("execution_error")
    if failure["node_type"].startswith("ARRAG_"):
        assert failure["exception_type"].endswith(".InputError"), (failure, body)
        assert len(result.error) < 2200
        result.error.encode("cp1252")
    return "failed"


def test_a_hundred_hostile_workflows(narrow, workflow, every_node, damaged):
    server, client = narrow
    bodies = [small(body) for body in (every_node, workflow("daid"), workflow("faid"))]
    good = small(workflow("daid"))
    start, endings = server.log.stat().st_size, dict.fromkeys(("refused", "drawn", "failed"), 0)
    first, before = picture(client, good), files_of(server.base)
    for seed in range(WORKFLOWS):
        body = hostile(bodies, damaged, random.Random(seed))
        endings[ending(client, body)] += 1
        client.post("/free", {"free_memory": True, "unload_models": seed % 10 == 0})
        assert picture(client, good) == first, (seed, body)
    with server.log.open("rb") as log:
        log.seek(start)
        told = log.read().decode("cp1252", "replace")
    assert strange(told) == []
    assert endings["failed"] >= WORKFLOWS / 5, endings
    assert endings["refused"] + endings["failed"] >= WORKFLOWS / 2, endings
    made = files_of(server.base) - before
    allowed = ("output", "temp", "models/arrag/indexes", "comfyui.log", "user")
    assert [path for path in made if not path.startswith(allowed)] == []


def picture(client, good):
    """What the good workflow draws by now, drawn anew: its memory has been freed."""
    result = client.run(good, timeout=60)
    assert result.ending == "execution_success", result.error
    return Image.open(io.BytesIO(client.image(result.images()[0]))).tobytes()


def files_of(base):
    """Paths of all files below the folder, below the links to the pack not."""
    folders = [path for path in base.iterdir() if path.name != "custom_nodes"]
    files = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    return {path.relative_to(base).as_posix() for path in files if path.is_file()}


def strange(log):
    """The endings of those tracebacks in a log that pass our code and are of another type."""
    blocks = log.split("Traceback (most recent call last):")[1:]
    parts = [re.match(r"((?:\s.*)?(?:\n[ \t].*)*)\n(.*)", block) for block in blocks]
    return [m[2] for m in parts if m and "ComfyUI-ARRAG" in m[1] and "InputError" not in m[2]]


def test_what_is_looked_for_in_the_log():
    head = "Traceback (most recent call last):\n"
    ours, other = '  File "x/ComfyUI-ARRAG/nodes/a.py", line 1\n', '  File "x/nodes.py", line 1\n'
    endings = ("a.errors.InputError: b\n", "KeyError: 'a'\n")
    log = "".join(f"got\n{head}{line}    a()\n{end}\n" for line in (ours, other) for end in endings)
    assert strange(log) == ["KeyError: 'a'"]
